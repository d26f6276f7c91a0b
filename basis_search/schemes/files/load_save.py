"""Schemes on disk: load() reads published formats and verifies them by Brent's equations; save() writes schemes.

| suffix | read | written |
|---|---|---|
| .json | native; AlphaEvolve's and flip-graph programs' {n, m, u, v, w}, {u_fresh, ...}; three matrices | native |
| .txt, none | coefficient blocks of fast-matmul, dimensions down, products across, "#" between | the same |
| .npz | native; AlphaTensor's, whose pickles are never executed | native |
| .sms, .slp | plinopt's X_L, X_R, X_P; X-ALT_* are composed with X-CoB_* | |
| .exp, .m | products of linear forms, one per line; nested braces | |
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
from basis_search.schemes.files.identify import Matrices, identify

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
    """The verified scheme in a file; the module's docstring lists the formats.

    Args:
        path: for plinopt any one of the three files; the other two are read from the same folder.
        name: the scheme's name in an .npz with several, such as "4,4,5".

    Returns:
        A `BilinearScheme`, or a `ConvolutionScheme` from a native file of a polynomial product or filter.

    Raises:
        BadInput: no such file, more than 8 MiB, an unknown suffix, malformed contents, or a scheme that is not exact
            (the message names the first violated equation).
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(suffix for suffix in _READERS if suffix)
        raise BadInput(f"{path.name}: suffix {path.suffix!r} is unknown; schemes are read from {known}")
    try:
        found = reader(path, name)
        return identify(found, path.name) if isinstance(found, Matrices) else found
    except BadInput as problem:
        message = str(problem)
        raise BadInput(message if path.name in message else f"{path.name}: {message}") from None
    except RecursionError:
        raise BadInput(f"{path.name}: the file is nested too deeply for a scheme") from None
    except UnicodeDecodeError:
        raise BadInput(f"{path.name}: the file is not UTF-8 text") from None


def save(scheme: BilinearMap, path: str | os.PathLike[str], provenance: Mapping[str, Any] | None = None) -> None:
    """Writes a scheme atomically as .json, .txt or .npz, by the suffix.

    Args:
        scheme: verified before it is written, unless its ring is R.
        path: the file.
        provenance: stored in .json files: method, seed, seconds and the like.

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
    """The provenance in a native .json file.

    Raises:
        BadInput: no such file, or not a native one.
    """
    data = readers.parse_json_file(Path(path))
    if not native.is_native(data):
        raise BadInput(f"{Path(path).name} is not a scheme file written by save() and has no provenance")
    return dict(data.get("provenance", {}))
