"""RunFolder names every file of a run, and refuses missing or damaged ones in one sentence."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import basis_search as bs
from basis_search.workers import run_folder
from basis_search.workers.evaluation_log import open_log
from basis_search.workers.run_folder import RunFolder

pytestmark = pytest.mark.fast
Write = Callable[..., Path]

NAMES = ("config.yaml", "evaluations.jsonl", "claims.json", "studies.journal", "front.json", "plans.json",
         "summary.json", "report.html")  # fmt: skip


def texts(tree: ast.AST) -> Iterator[str]:
    """String constants, parts of f-strings among them, without docstrings."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        yield from texts(node)


@pytest.mark.slow
def test_no_other_module_spells_the_names_of_a_run_folder_s_files() -> None:
    package = Path(bs.__file__).parent
    home = Path(run_folder.__file__)
    modules = [*package.rglob("*.py"), *(package.parent / "examples").rglob("*.py")]
    spelt = {
        (path.relative_to(package.parent).as_posix(), name)
        for path in modules
        if path != home
        for text in texts(ast.parse(path.read_text()))
        for name in NAMES
        if name in text
    }
    assert spelt == set()
    assert {name for text in texts(ast.parse(home.read_text())) for name in NAMES if name in text} == set(NAMES)


def test_what_a_search_wrote_is_read(write_run: Write) -> None:
    folder = RunFolder(write_run(layers=1))
    folder.check()
    folder.check_evaluated()
    log = open_log(folder, "to start from", "name another")
    front = folder.front()
    assert {e.candidate for f in front.values() for e in f.evaluations} <= {e.candidate for e in log}
    assert {plan["name"] for plan in folder.plans()} == {plan["name"] for plan in folder.plans()} != set()
    assert "dense" in folder.summary()
    folder.write_front(front)
    assert folder.front() == front
    before = folder.config_file.read_bytes()
    folder.replace_config("seed: 5\n")
    assert folder.config() == {"seed": 5}
    assert (folder.path / "config-1.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content", "read", "sentence"),
    [
        ("evaluations.jsonl", None, lambda f: f.check_evaluated(), "is no run folder: it holds no evaluations.jsonl"),
        ("evaluations.jsonl", None, lambda f: open_log(f, "to start from", "name another"),
         "holds no evaluations.jsonl to start from; name another"),
        ("front.json", None, lambda f: f.front(), "no finished run: it holds no front.json; name a folder"),
        ("front.json", '{"schema_version": 1, "layers": []}', lambda f: f.front(), "front.json is not a front of"),
        ("front.json", '{"schema_version": 1, "layers": {"fc": [{}]}}', lambda f: f.front(),
         r"front\.json: this is no evaluation of basis_search: it has no schema_version"),
        ("front.json", '{"schema_version": 9}', lambda f: f.front(), "schema version 9, but this basis_search reads"),
        ("plans.json", None, lambda f: f.plans(), "no finished run: it holds no plans.json; name a folder"),
        ("plans.json", '{"schema_version": 1, "plans": {}}', lambda f: f.plans(), "holds no plans of basis_search"),
        ("summary.json", "[]", lambda f: f.summary(), "it has no schema_version"),
        ("config.yaml", None, lambda f: f.config(), "config.yaml cannot be read .*; name a run folder"),
        ("config.yaml", "[1, 2]", lambda f: f.config(), "config.yaml holds no settings; name a run folder"),
    ],
)  # fmt: skip
def test_what_is_missing_or_damaged_is_refused(
    write_run: Write, name: str, content: str | None, read: Callable[[RunFolder], object], sentence: str
) -> None:
    folder = RunFolder(write_run(layers=1))
    if content is None:
        (folder.path / name).unlink()
    else:
        (folder.path / name).write_text(content)
    with pytest.raises(bs.BadInput, match=sentence):
        read(folder)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(bs.BadInput, match=r"holds neither config\.yaml nor evaluations\.jsonl; name the folder"):
        RunFolder(tmp_path).check()
    with pytest.raises(bs.BadInput, match=r"there is no run folder .*nowhere"):
        RunFolder(tmp_path / "nowhere").check_evaluated()
