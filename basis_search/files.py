"""JSON, JSON-lines and safetensors files: written whole or not at all, read without running code."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import stat
import sys
import urllib.parse
from collections import Counter
from collections.abc import Callable, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from basis_search.errors import BadInput

MAX_JSON_BYTES = 64 * 2**20
MAX_HEADER_BYTES = 2**20
"""Limit of a safetensors header, JSON of names and shapes with about 100 bytes a tensor."""


def file_name(name: str, suffix: str) -> str:
    """A file name for any layer name: no separators, never outside its directory."""
    quoted = urllib.parse.quote(name, safe="").replace("~", "%7E") or "%00"
    return ("%2E" + quoted[1:] if quoted.startswith(".") else quoted) + suffix


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, document: Any) -> None:
    """Writes a JSON file in one step: a reader sees the old content or the new, never a part."""
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


def append_line(path: Path, line: bytes, *, unless: Callable[[], bool] | None = None, durable: bool = True) -> int:
    """Appends a line, or several, in one piece under a lock on the file; any number of processes may do so at once.

    A last line without its end, left by a crash, is cut off first and reported on stderr. Where the disk is full the
    file stays as it was.

    Args:
        path: the file, made where it is missing.
        line: with its line end.
        unless: called under the lock; nothing is appended where it returns True.
        durable: the line is on disk on return, also after a power failure.

    Returns:
        The file's size after the line; -1 where nothing was appended.

    Raises:
        OSError: the file cannot be written.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            end = os.pread(descriptor, size, 0).rfind(b"\n") + 1
            print(f"{path}: the last line was cut off by a crash; its {size - end} bytes are dropped", file=sys.stderr)
            os.ftruncate(descriptor, size := end)
        if unless is not None and unless():
            return -1
        try:
            if os.write(descriptor, line) != len(line):
                raise OSError(errno.ENOSPC, "the disk is full")
        except OSError:
            os.ftruncate(descriptor, size)
            raise
        if durable:
            os.fsync(descriptor)
            if size == 0:
                _sync_folder(path.parent)
        return size + len(line)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """A new file's name is on disk as well."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def new_lines(path: Path, position: int = 0) -> tuple[list[bytes], int]:
    """The whole lines of a file from a position on, and the position after them; none where there is no file.

    A last line without its end is left: it is being written, or a crash cut it off.
    """
    if not path.exists():
        return [], position
    with path.open("rb") as file:
        file.seek(position)
        whole, end, _ = file.read().rpartition(b"\n")
    return [line for line in whole.split(b"\n") if line], position + len(whole) + len(end)


def place_of(path: Path, line: bytes) -> str:
    """Such as "runs/a/evaluations.jsonl, line 7": where that line first occurs, for messages on damaged lines."""
    numbers = (number for number, other in enumerate(path.read_bytes().split(b"\n"), 1) if other == line)
    return f"{path}, line {next(numbers, '?')}"


def read_json(path: Path, most: int = MAX_JSON_BYTES) -> Any:
    """The document in a JSON file of at most `most` bytes.

    Raises:
        BadInput: missing, not a regular file, too large, not JSON, nested too deeply, with a key twice in one object,
            or with a number that is not finite.
    """
    try:
        _check_plain(path)
        with path.open("rb") as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise BadInput(f"{path} has {path.stat().st_size} bytes, but at most {most} are read")
        return json.loads(
            data, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite, parse_int=_whole
        )
    except OSError as problem:
        raise BadInput(f"{path} cannot be read: {problem.strerror}") from problem
    except RecursionError as problem:
        raise BadInput(f"{path} is nested too deeply") from problem
    except ValueError as problem:
        if isinstance(problem, BadInput):
            raise problem if str(path) in str(problem) else BadInput(f"{path}: {problem}") from problem
        raise BadInput(f"{path} is not JSON: {problem}") from problem


def _check_plain(path: Path) -> None:
    """Raises BadInput for a pipe, which would block, or a device, which has no end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise BadInput(f"{path} is not a regular file")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = next(key for key, count in Counter(map(itemgetter(0), pairs)).items() if count > 1)
        raise BadInput(f"the key {twice[:100]!r} occurs twice in one object")
    return result


def _no_constant(name: str) -> None:
    raise BadInput(f"the number {name} is not allowed")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise BadInput(f"the number {text[:20]} is beyond what a double holds")
    return number


def _whole(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= (number := int(text)) < 2**64:
        raise BadInput(f"the number {text[:20]}... is beyond 64 bits")
    return number


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
    """The tensors of a safetensors file in `directory` that must have that sha256.

    Raises:
        BadInput: the name leaves the directory, the file is missing, cut, edited, or no safetensors file.
    """
    if not is_file_name(name):
        raise BadInput(f"the tensors file {name!r} does not lie in {directory}; only plain file names are read")
    path = directory / name
    try:
        if not path.is_file() or path.is_symlink():
            raise BadInput(f"{path} is missing; the directory was copied without it, or was never finished")
        found = sha256(path)
        if found != expected_sha256:
            raise BadInput(
                f"{path} was cut or edited: its sha256 is {found[:12]}..., but {str(expected_sha256)[:12]}... was "
                "written; restore the file"
            )
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > MAX_HEADER_BYTES:
            raise BadInput(f"{path} has a header of {header} bytes, but at most {MAX_HEADER_BYTES} are read")
        tensors = load_file(path)
    except OSError as problem:
        raise BadInput(f"{path} cannot be read: {problem.strerror or problem}") from problem
    except (safetensors.SafetensorError, ValueError, KeyError, AttributeError, RuntimeError) as problem:
        if isinstance(problem, BadInput):
            raise
        raise BadInput(f"{path} is no safetensors file: {problem}") from problem
    return tensors


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raises BadInput if a tensor that was read from that file holds NaN or infinite values."""
    for key, tensor in tensors.items():
        values = tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor
        if values.is_floating_point() and not bool(torch.isfinite(values).all()):
            raise BadInput(f"{path}: {key[:100]!r} holds NaN or infinite values; restore the file")


def is_file_name(name: Any) -> bool:
    """Whether it is a plain name: joined to a directory it is a file in that directory on every system."""
    return (
        isinstance(name, str)
        and 0 < len(name.encode(errors="replace")) <= 255
        and name not in (".", "..")
        and not set(name) & set("/\\:\0")
    )
