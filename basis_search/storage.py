"""Files that outlive a process: JSON and safetensors, written whole or not at all, read without running anything."""

from __future__ import annotations

import hashlib
import json
import os
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load_file
from torch import Tensor

from basis_search.errors import BadInput

MAX_JSON_BYTES = 64 * 2**20


def file_name(name: str, suffix: str) -> str:
    """A file name for any layer name: no separators, never outside its directory."""
    quoted = urllib.parse.quote(name, safe="").replace("~", "%7E") or "%00"
    return ("%2E" + quoted[1:] if quoted.startswith(".") else quoted) + suffix


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, document: Any) -> None:
    """Replaces the file in one step: a reader sees the old or the new one whole."""
    text = json.dumps(document, indent=1, allow_nan=False)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """The document in a JSON file.

    Raises:
        BadInput: not there, too large, not JSON, nested too deep, or with a key twice in one object.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise BadInput(f"{path} has {size} bytes, but at most {MAX_JSON_BYTES} are read")
        return json.loads(path.read_text(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except OSError as problem:
        raise BadInput(f"{path} cannot be read: {problem.strerror}") from problem
    except RecursionError as problem:
        raise BadInput(f"{path} is nested too deep to be ours") from problem
    except ValueError as problem:
        if isinstance(problem, BadInput):
            raise BadInput(f"{path}: {problem}") from problem
        raise BadInput(f"{path} is not JSON: {problem}") from problem


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        raise BadInput(f"the key {next(k for k in keys if keys.count(k) > 1)!r} stands twice in one object")
    return result


def _no_constant(name: str) -> None:
    raise BadInput(f"the number {name} is not allowed")


def check_document(document: Any, expected_format: str, newest: int, path: Path) -> None:
    """Raises BadInput unless it is a JSON object of that format and of a schema version up to `newest`."""
    if not isinstance(document, Mapping) or document.get("format") != expected_format:
        raise BadInput(f"{path} was not written by basis_search: its format is not {expected_format!r}")
    check_version(document, newest, path)


def check_version(document: Any, newest: int, path: Path) -> None:
    """Raises BadInput unless it is a JSON object of a schema version from 1 up to `newest`."""
    if not isinstance(document, Mapping) or "schema_version" not in document:
        raise BadInput(f"{path} was not written by basis_search: it has no schema_version")
    version = document["schema_version"]
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BadInput(f"{path} has schema_version {version!r}, but a whole number from 1 to {newest} is needed")
    if version > newest:
        raise BadInput(
            f"{path} has schema version {version}, but this basis_search reads up to {newest}; install a newer one"
        )


def read_tensors(directory: Path, name: str, expected_sha256: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file that must lie in `directory` and have that sha256.

    Raises:
        BadInput: the name leaves the directory, the file is missing, cut or edited.
    """
    if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
        raise BadInput(f"the tensors file {name!r} does not lie in {directory}; only plain file names are read")
    path = directory / name
    if not path.is_file() or path.is_symlink():
        raise BadInput(f"{path} is missing; the directory was copied without it, or was never finished")
    found = sha256(path)
    if found != expected_sha256:
        raise BadInput(
            f"{path} was cut or edited: its sha256 is {found[:12]}..., but {str(expected_sha256)[:12]}... was written; "
            "restore the file"
        )
    try:
        return load_file(path)
    except safetensors.SafetensorError as problem:
        raise BadInput(f"{path} is no safetensors file: {problem}") from problem
