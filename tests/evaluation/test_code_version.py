"""The code version changes with every module that `evaluate` imports, with their data files, and with no other."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from basis_search.evaluation import code_version
from basis_search.families import FAMILIES

pytestmark = pytest.mark.fast


def version_of(folder: Path) -> str:
    """The code version of the copy of the package in that folder, computed in another process.

    -S leaves out the .pth files, by which an editable install would come first.
    """
    code = (
        "from basis_search.evaluation import code_version as c; "
        f"assert c.__file__.startswith({str(folder)!r}), c.__file__; print(c.code_version())"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}
    command = [sys.executable, "-S", "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.slow
def test_the_version_follows_the_code_and_data_of_evaluate_and_ignores_the_rest(tmp_path: Path) -> None:
    package = tmp_path / "basis_search"
    shutil.copytree(code_version.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    original = version_of(tmp_path)
    # Compiled kernels lie in the environment's own folder in an editable install.
    assert code_version.sources(original) == code_version.sources(code_version.code_version())
    for outside in ("report/page.py", "monitor/watch.py", "study/__init__.py", "workers/__init__.py", "__init__.py"):
        edit(package / outside, '"""', '"""Edited: ')
    (package / "report" / "page.html").write_text("")
    assert version_of(tmp_path) == original
    edit(package / "evaluation" / "correctness.py", "limit < gap", "2 * limit < gap")
    versions = [original, version_of(tmp_path)]
    for folder in ("approximate", "ternary"):
        stored = sorted((package / "schemes" / "library" / "data" / folder).rglob("*.safetensors"))[0]
        content = bytearray(stored.read_bytes())
        content[-1] ^= 1
        stored.write_bytes(content)
        versions.append(version_of(tmp_path))
    assert len(set(versions)) == len(versions)


def test_the_data_files_are_the_stored_schemes() -> None:
    found = code_version.data_files(code_version.imported_sources())
    stored = code_version.PACKAGE / "schemes" / "library" / "data"
    assert {path for path in stored.rglob("*") if path.suffix in (".json", ".safetensors")} == set(found.values())


def test_every_folder_of_the_families_counts_as_imported(tmp_path: Path) -> None:
    package = tmp_path / "basis_search"
    shutil.copytree(code_version.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "data"))
    (package / "families" / "__init__.py").write_text("")
    shutil.copytree(package / "families" / "lowrank", package / "families" / "another")
    found = code_version.imported_sources("basis_search.families", package)
    assert {f"basis_search.families.{name}" for name in (*FAMILIES, "another")} <= found.keys()


def test_every_module_of_every_family_that_is_needed_decides() -> None:
    found = code_version.imported_sources()
    for name in FAMILIES:
        assert {f"basis_search.families.{name}", f"basis_search.families.{name}.reference"} <= found.keys()
    assert {
        "basis_search.evaluation.correctness",
        "basis_search.evaluation.timing",
        "basis_search.families.protocol",
        "basis_search.families.stl.kernels_triton",
        "basis_search.layers.layer",
        "basis_search.schemes.programs.shorten",
    } <= found.keys()
    assert not [name for name in found if name.split(".")[1] in ("report", "monitor", "run", "study", "workers")]


@pytest.mark.slow
def test_imports_found_by_pattern_are_those_that_a_full_parse_finds() -> None:
    for path in sorted(code_version.PACKAGE.rglob("*.py")):
        source = path.read_text()
        expected = {name for name in parsed(ast.parse(source).body) if name.startswith("basis_search")}
        found = {name for name in code_version._imports(source) if name.startswith("basis_search")}
        assert expected <= found, path


def parsed(statements: Iterable[ast.AST]) -> Iterator[str]:
    for statement in statements:
        match statement:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                yield from parsed(statement.orelse)
            case ast.Import():
                yield from (alias.name for alias in statement.names)
            case ast.ImportFrom():
                assert statement.level == 0, "relative imports are not followed"
                assert statement.module is not None
                yield statement.module
                yield from (f"{statement.module}.{alias.name}" for alias in statement.names)
            case _:
                yield from parsed(ast.iter_child_nodes(statement))


def test_the_answer_does_not_depend_on_what_is_imported_and_is_quick() -> None:
    package = code_version.PACKAGE
    code = (
        "import time; from basis_search.evaluation import code_version as c; start = time.process_time(); "
        "print(*c.imported_sources()); assert time.process_time() - start < .25"
    )
    flags = ["-S"] if sys.flags.no_site else []
    alone = subprocess.run([sys.executable, *flags, "-c", code], check=True, capture_output=True, text=True).stdout
    assert alone.split() == list(code_version.imported_sources(package=package))
