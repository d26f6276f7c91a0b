"""The layout of ARCHITECTURE.md: few files at the top, folders that say what they hold, short signatures."""

from __future__ import annotations

import ast
import itertools
from collections import Counter
from pathlib import Path

import long_signatures
import pytest

import basis_search as bs

pytestmark = pytest.mark.fast

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "basis_search"
KERNELS = ROOT / "kernels" / "basis_kernels"
LONG_PUBLIC_SIGNATURES = {
    "Codebook.fit",
    "Search.__init__",
    "StructuredLinear.__init__",
    "capture",
    "discover",
    "factorize",
    "search",
    "search_model",
}
"""Public, and therefore fixed."""
SAME_NAME_IN_EVERY_FAMILY = {"Space", "Spec", "Packed"}


def modules(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def folders() -> list[Path]:
    return sorted({path.parent for path in modules(PACKAGE)})


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def test_few_modules_lie_at_the_top() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 6


@pytest.mark.parametrize("folder", folders(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_folder_says_what_it_holds(folder: Path) -> None:
    sentence = (ast.get_docstring(parsed(folder / "__init__.py")) or "").split("\n")[0]
    assert sentence.endswith("."), sentence


def test_folders_are_named_like_nothing_else() -> None:
    """Importing a folder would put it in the place of a public function of the package above it."""
    for package, names in ((PACKAGE, dir(bs)), (PACKAGE / "schemes", bs.schemes.__all__)):
        owner = bs if package == PACKAGE else bs.schemes
        functions = {name for name in names if callable(getattr(owner, name))}
        assert not {path.name for path in package.iterdir()} & functions
    assert not {path.name for path in PACKAGE.iterdir()} & {path.name for path in ROOT.iterdir()}


@pytest.mark.parametrize("folder", folders(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_two_modules_differ_by_an_ending(folder: Path) -> None:
    names = sorted([path.stem for path in folder.glob("*.py")] + [p.name for p in folder.iterdir() if p.is_dir()])
    for a, b in itertools.permutations(names, 2):
        assert b not in {a + ending for ending in ("s", "es", "d", "ed", "ing", "er")}, (a, b)


@pytest.mark.slow
def test_one_class_name_has_one_meaning() -> None:
    """Private classes and what every family has by protocol excepted."""
    found = Counter(
        node.name
        for path in modules(PACKAGE)
        for node in parsed(path).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert {name for name, count in found.items() if count > 1} <= SAME_NAME_IN_EVERY_FAMILY


@pytest.mark.slow
def test_only_public_signatures_are_long() -> None:
    """Triton kernels excepted: their launches pass scalars and pointers only."""
    assert {found.name for found in long_signatures.signatures() if not found.is_triton} == LONG_PUBLIC_SIGNATURES


def test_files_are_small() -> None:
    sizes = {path: len(path.read_text().splitlines()) for folder in (PACKAGE, KERNELS) for path in modules(folder)}
    assert {p.relative_to(ROOT).as_posix(): size for p, size in sizes.items() if size > 330} == {}
    assert len((ROOT / "pyproject.toml").read_text().splitlines()) < 230


def test_the_checkout_is_no_part_of_the_package() -> None:
    """An editable install once made basis_search.tests and basis_search.basis_search importable."""
    assert PACKAGE in {Path(folder) for folder in bs.__path__}
    assert ROOT not in {Path(folder) for folder in bs.__path__}
