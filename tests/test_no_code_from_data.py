"""Nothing in the package runs code that came from data: no pickle, no eval, no import by a name from a file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    [*(ROOT / "basis_search").rglob("*.py"), *(ROOT / "kernels").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]
)
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "code", "runpy"}
NAMES = {"eval", "exec", "compile", "__import__", "execfile"}
ATTRIBUTES = {
    "unsafe_load",
    "full_load",
    "FullLoader",
    "UnsafeLoader",
    "system",
    "popen",
    "execv",
    "execve",
    "literal_eval",
}
READERS = {"basis_search/schemes/files/unpickle.py"}
"""Names in pickled arrays become stand-ins there, which tests/schemes/files/test_scheme_files_hostile.py checks."""
IMPORTS = {
    "basis_search/cli.py",
    "basis_search/__init__.py",
    "basis_search/families/__init__.py",
    "basis_search/moved.py",
    "basis_search/bench/run_suite.py",
}
"""Where a module is imported by a name that the program itself lists."""


def parsed() -> Iterator[tuple[str, ast.AST]]:
    for path in SOURCES:
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(), str(path))


def offences(name: str, tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        where = f"{name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            for module in modules:
                if module.split(".")[0] in MODULES and name not in READERS:
                    yield f"{where} imports {module}"
        elif isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id in NAMES:
                yield f"{where} calls {called.id}"
            if isinstance(called, ast.Attribute):
                owner = called.value.id if isinstance(called.value, ast.Name) else ""
                keywords = {k.arg: k.value for k in node.keywords}
                if called.attr in ATTRIBUTES:
                    yield f"{where} calls {owner}.{called.attr}"
                if (owner, called.attr) == ("yaml", "load"):
                    yield f"{where} calls yaml.load"
                if (owner, called.attr) == ("torch", "load"):
                    safe = keywords.get("weights_only")
                    if not (isinstance(safe, ast.Constant) and safe.value is True):
                        yield f"{where} calls torch.load without weights_only=True"
                if called.attr in ("load", "load_npz") and owner in ("np", "numpy"):
                    allowed = keywords.get("allow_pickle")
                    if not (isinstance(allowed, ast.Constant) and allowed.value is False):
                        yield f"{where} calls np.load without allow_pickle=False"
                if (owner, called.attr) == ("importlib", "import_module") and name not in IMPORTS:
                    first = node.args[0] if node.args else None
                    if not isinstance(first, ast.Constant):
                        yield f"{where} imports a module by a name made up at run time"
            for keyword in node.keywords:
                if keyword.arg == "shell" and not (
                    isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                ):
                    yield f"{where} runs a shell"


@pytest.mark.slow
def test_no_code_comes_from_data() -> None:
    assert len(SOURCES) > 100
    assert [offence for name, tree in parsed() for offence in offences(name, tree)] == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from cloudpickle import loads", "eval(text)", "exec(text)", "yaml.load(text)",
        "torch.load(path)", "torch.load(path, weights_only=False)", "np.load(path)", "np.load(path, allow_pickle=True)",
        "__import__(name)", "importlib.import_module(name)", "subprocess.run(text, shell=True)", "os.system(text)",
    ],
)  # fmt: skip
def test_the_check_sees_what_it_looks_for(line: str) -> None:
    assert list(offences("x.py", ast.parse(line)))
