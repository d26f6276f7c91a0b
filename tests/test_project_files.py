"""Files that other programs read: types of both packages, citation, workflow, hooks and issue forms."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import basis_search as bs
from basis_search.moved import MOVED

pytestmark = pytest.mark.fast

ROOT = Path(__file__).resolve().parents[1]


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def test_both_packages_say_that_they_are_typed() -> None:
    for package in ("basis_search", "kernels/basis_kernels"):
        assert (ROOT / package / "py.typed").is_file()


def test_old_import_paths_have_types() -> None:
    """One line each: a type checker does not run `moved`."""
    for old, new in MOVED.items():
        if old != "basis_search.linears":  # for pickles alone
            stub = ROOT / f"{old.replace('.', '/')}.pyi"
            assert stub.read_text() == f"from {new} import *\n"


def test_the_citation_names_this_version() -> None:
    (version,) = re.findall(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), flags=re.M)
    citation = read("CITATION.cff")
    assert str(citation["version"]) == version
    assert {"cff-version", "title", "message", "authors"} <= set(citation)


def test_the_workflow_runs_the_scripts_that_are_there() -> None:
    jobs = read(".github/workflows/test.yml")["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    for script in re.findall(r"\./(scripts/\S+)", "\n".join(commands)):
        assert (ROOT / script).is_file()
    assert "./scripts/test" in commands
    assert any(command.startswith("pip wheel") for command in commands)


def test_hooks_call_tools_of_the_dev_extra() -> None:
    (repository,) = read(".pre-commit-config.yaml")["repos"]
    extra = re.search(r"^dev = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), flags=re.M | re.S)
    assert extra is not None
    packages = {"lint-imports": "import-linter"}
    for hook in repository["hooks"]:
        tool = hook["entry"].split()[0]
        assert f'"{packages.get(tool, tool)}>=' in extra.group(1)


def test_issue_forms_ask_for_kernels_and_version() -> None:
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert forms
    for form in forms:
        asked = " ".join(str(field["attributes"]["label"]) for field in yaml.safe_load(form.read_text())["body"])
        assert "basis-search kernels" in asked
        assert "--version" in asked


def test_a_public_name_is_documented() -> None:
    """Every public function and class has a docstring; the families' modules, too."""
    assert [name for name in dir(bs) if not (getattr(bs, name).__doc__ or "").strip()] == []
