"""The code version: the package version and a digest of the sources that decide an evaluation.

They are the modules of basis_search that `evaluation.evaluate` imports, directly or not, the data files in their
folders, and basis_kernels.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
ENTRY = "basis_search.evaluation.evaluate"
FAMILIES = "basis_search.families"
NOT_DATA = {".py", ".pyc", ".pyi", ".so", ".typed"}
IMPORT = re.compile(
    r"^[ ]*(?:from (?P<module>[\w.]+) import (?P<names>\([^)]*\)|[^\n#(]+)|import (?P<modules>[\w., ]+))", re.MULTILINE
)
TYPE_CHECKING = re.compile(r"^if TYPE_CHECKING:\n(?:[ ]+.*\n|\n)*", re.MULTILINE)


@lru_cache
def code_version() -> str:
    """Such as "0.1.0+3f2a91c0.77b1e402": version, digest of sources and data files, digest of the compiled kernels.

    The last part differs between machines with different compilers; evaluations are shared where all of it agrees.
    """
    kernels = importlib.util.find_spec("basis_kernels")
    folders = [] if kernels is None else [Path(p) for p in kernels.submodule_search_locations or ()]
    modules = imported_sources()
    python = {**modules, **data_files(modules), **_files(folders, ".py")}
    version = importlib.metadata.version("basis_search")
    return f"{version}+{_digest(python)}.{_digest(_files(folders, '.so'))}"


def sources(code: str) -> str:
    """The part of a `code_version` that all workers of a run must share: all but the compiled kernels."""
    return code.rpartition(".")[0]


def imported_sources(entry: str = ENTRY, package: Path = PACKAGE) -> dict[str, Path]:
    """The modules of a package that `entry` imports, directly or not, itself included, with their files, by name.

    Read from the source files, so that it does not depend on what this process has imported. Imports inside functions
    count, those under `if TYPE_CHECKING` do not. The package's own `__init__` only forwards names and is left out.
    The families count as imported by their package, which loads them by name.

    Args:
        entry: a module of the package, by its full name.
        package: the package's folder.
    """
    found: dict[str, Path] = {}
    ahead = [entry]
    while ahead:
        name = ahead.pop()
        path = None if name in found else _path_of(name, package)
        if path is not None:
            found[name] = path
            ahead += [name.rpartition(".")[0], *_imports(path.read_text())]
            if name == FAMILIES:
                ahead += [f"{name}.{inner.parent.name}" for inner in path.parent.glob("*/__init__.py")]
    return dict(sorted(found.items()))


def data_files(modules: Mapping[str, Path]) -> dict[str, Path]:
    """The files below the packages among those modules that are no code, such as stored schemes, by their path."""
    folders = {path.parent for path in modules.values() if path.name == "__init__.py"}
    found = {
        str(path.relative_to(folder.parent)): path
        for folder in folders
        if folder.parent not in folders  # the others are below these
        for path in folder.rglob("[!.]*")
        if path.suffix not in NOT_DATA and path.is_file()
    }
    return dict(sorted(found.items()))


def _path_of(name: str, package: Path) -> Path | None:
    """The source file of a module below the package; None for any other name."""
    root, *inner = name.split(".")
    if root != package.name or not inner:
        return None
    path = package.joinpath(*inner)
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def _imports(source: str) -> Iterator[str]:
    """Names that a module imports, as the formatter writes imports: what may be a module is among them.

    A full parse (`ast`) of all modules takes half a second, this a few hundredths; a test compares the two.
    """
    for found in IMPORT.finditer(TYPE_CHECKING.sub("", source)):
        if found["module"] is None:
            yield from (part.split()[0] for part in found["modules"].split(","))
        else:
            yield found["module"]
            yield from (f"{found['module']}.{name}" for name in re.findall(r"(\w+)(?: as \w+)?", found["names"]))


def _files(folders: list[Path], suffix: str) -> dict[str, Path]:
    """The files of that suffix below the folders, by their path there."""
    return {str(path.relative_to(folder)): path for folder in folders for path in sorted(folder.rglob("*" + suffix))}


def _digest(files: Mapping[str, Path]) -> str:
    digest = hashlib.sha256()
    for name, path in files.items():
        content = path.read_bytes()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:8]
