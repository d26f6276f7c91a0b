"""Every family defines each protocol member in the file of the same name; its `__init__` only re-exports."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from basis_search.families import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
HOME = {
    "Spec": "spec",
    "Space": "space",
    "suggest": "space",
    "fit": "fit",
    "cost": "cost",
    "forecast": "forecast",
    "KERNELS": "kernels",
    "STYLE": "style",
    "examples": "examples",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_each_member_has_its_file(name: str) -> None:
    for member, file in HOME.items():
        module = importlib.import_module(f"basis_search.families.{name}.{file}")
        assert getattr(FAMILIES[name], member) is getattr(module, member), member
        tree = ast.parse(Path(str(module.__file__)).read_text())
        assert member in defined(tree), f"{member} is imported into {file}.py, not defined there"
    reference = importlib.import_module(f"basis_search.families.{name}.reference")
    assert callable(reference.reference)


@pytest.mark.parametrize("name", FAMILIES)
def test_init_defines_nothing_but_fits_rows(name: str) -> None:
    module = importlib.import_module(f"basis_search.families.{name}")
    assert defined(ast.parse(Path(str(module.__file__)).read_text())) == {"__all__", "FITS_ROWS"}


@pytest.mark.parametrize("name", FAMILIES)
def test_kernels_do_not_import_the_compiled_module_themselves(name: str) -> None:
    module = importlib.import_module(f"basis_search.families.{name}.kernels")
    assert "basis_kernels" not in Path(str(module.__file__)).read_text()


@pytest.mark.slow
def test_mypy_takes_each_family_for_one(tmp_path: Path) -> None:
    """FAMILIES loads them by name, which mypy cannot follow."""
    code = "from basis_search.families.protocol import Family\n"
    for name in FAMILIES:
        code += f"from basis_search.families import {name}\n{name}_: Family = {name}\n"
    (tmp_path / "checked.py").write_text(code)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        str(ROOT / "pyproject.toml"),
        str(tmp_path / "checked.py"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "checked.py").write_text(code + "import math\nmath_: Family = math\n")
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).returncode == 1


def defined(tree: ast.Module) -> set[str]:
    """Names that the module's own statements bind, imports left out."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names
