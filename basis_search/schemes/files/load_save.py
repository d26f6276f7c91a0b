"""Schemes on disk: load() reads what the field publishes and proves it by Brent's equations; save() writes them.

| suffix | read | written |
|---|---|---|
| .json | ours; AlphaEvolve's and flip-graph programs' {n, m, u, v, w}, {u_fresh, ...}; three matrices | ours |
| .txt, none | coefficient blocks of fast-matmul, dimensions down, products across, "#" between | the same |
| .npz | ours; AlphaTensor's, whose pickles are never executed | ours |
| .sms, .slp | plinopt's X_L, X_R, X_P; X-ALT_* are composed with X-CoB_* | |
| .exp, .m | products of linear forms, one a line; nested braces | |
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from basis_search.errors import BadInput
from basis_search.schemes.algebra.bilinear import BilinearMap
from basis_search.schemes.files import native, plinopt, readers
from basis_search.schemes.files.identify import Matrices, settle

Reader = Callable[[Path, str | None], Matrices | BilinearMap]

_READERS: dict[str, Reader] = {
    ".json": readers.read_json,
    ".txt": readers.read_blocks,
    "": readers.read_blocks,
    ".npz": readers.read_npz,
    ".sms": plinopt.read_plinopt,
    ".slp": plinopt.read_plinopt,
    ".exp": readers.read_exp,
    ".m": readers.read_braces_file,
}


def load(path: str | os.PathLike[str], name: str | None = None) -> Any:
    """The verified scheme in a file; see this module's docstring for the formats.

    Args:
        path: for plinopt any one of the three files; the other two are found beside it.
        name: which scheme of an .npz with several, such as "4,4,5".

    Returns:
        A `BilinearScheme`, or for our own files of polynomial products and filters a `ConvolutionScheme`.

    Raises:
        BadInput: no such file, more than 8 MiB, an unknown suffix, contents that are not of the format, or no exact
            scheme (the first violated of Brent's equations is named).
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(suffix for suffix in _READERS if suffix)
        raise BadInput(f"{path.name}: suffix {path.suffix!r} is unknown; schemes are in {known}")
    try:
        found = reader(path, name)
        return settle(found, path.name) if isinstance(found, Matrices) else found
    except BadInput as problem:
        message = str(problem)
        raise BadInput(message if path.name in message else f"{path.name}: {message}") from None
    except RecursionError:
        raise BadInput(f"{path.name}: the file nests deeper than any scheme; it is not read") from None
    except UnicodeDecodeError:
        raise BadInput(f"{path.name}: the file is no text in UTF-8") from None


def save(scheme: BilinearMap, path: str | os.PathLike[str], provenance: Mapping[str, Any] | None = None) -> None:
    """Writes a scheme as .json, .txt or .npz, by the suffix; the file appears whole or not at all.

    Args:
        provenance: kept in .json files: how it was found, by which seed, in what time.

    Raises:
        BadInput: another suffix, a folder that cannot be written, or an exact scheme that fails verification.
    """
    path = Path(path)
    writer = {".json": native.to_json, ".txt": native.to_text, ".npz": native.to_npz}.get(path.suffix.lower())
    if writer is None:
        raise BadInput(f"{path.name}: schemes are written as .json, .txt or .npz, not as {path.suffix!r}")
    if scheme.ring_of.exact and (violation := scheme.first_violation()) is not None:
        raise BadInput(f"{path.name} is not written: {violation}")
    data = writer(scheme, dict(provenance or {}))
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as handle:
            temporary = Path(handle.name)
            handle.write(data)
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as problem:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise BadInput(f"{path} cannot be written: {problem.strerror or problem}") from None


def provenance(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What one of our .json files says of its origin.

    Raises:
        BadInput: no such file, or none of ours.
    """
    data = readers.json_of(Path(path))
    if not native.is_own(data):
        raise BadInput(f"{Path(path).name} is no scheme file of ours and keeps no provenance")
    return dict(data.get("provenance", {}))
