"""Which code made a number: the package's version and a digest of the sources that decide an evaluation's outcome."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from functools import lru_cache
from pathlib import Path

DECISIVE = ("families", "schemes", "evaluate.py", "family.py", "layer.py", "timing.py")
"""What of the package decides what an evaluation says; the kernels do, too."""


@lru_cache
def code_version() -> str:
    """Such as "0.1.0+3f2a91c0.77b1e402": version, digest of the Python sources, digest of the compiled kernels.

    The last part differs between machines whose compilers do; evaluations are shared where all of it agrees.
    """
    own = Path(__file__).parent
    roots = [own / name for name in DECISIVE]
    kernels = importlib.util.find_spec("basis_kernels")
    folders = [] if kernels is None else [Path(p) for p in kernels.submodule_search_locations or ()]
    sources = _digest(
        [p for root in roots for p in _files(root, ".py")] + [p for f in folders for p in _files(f, ".py")]
    )
    compiled = _digest([p for folder in folders for p in _files(folder, ".so")])
    return f"{importlib.metadata.version('basis_search')}+{sources}.{compiled}"


def sources(code: str) -> str:
    """Of a `code_version`, what every worker of a run must share: all but the compiled kernels."""
    return code.rpartition(".")[0]


def _files(root: Path, suffix: str) -> list[Path]:
    return [root] if root.is_file() else sorted(root.rglob(f"*{suffix}"))


def _digest(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:8]
