"""The code blocks of the README and of the guides under docs/ run unchanged."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore

from basis_search import cli
from basis_search.evaluation import evaluate

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("page", ["README.md", "docs/example.md", "docs/models.md", "docs/schemes.md"])
def test_code_blocks_run_in_order(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.S)
    assert blocks
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)


@pytest.mark.parametrize("where", ["double", pytest.param("gpu", marks=pytest.mark.gpu)], indirect=True)
def test_code_blocks_of_the_gpu_guide_run_on_a_device(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "MAX_ATTEMPTS", 1)
    test_code_blocks_run_in_order("docs/gpu.md", tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "page", sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("**/*.md")), ids=lambda p: p.name
)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def commands() -> list[tuple[str, str]]:
    """Every line of the guides that is a basis-search command, with the page; continued lines as one."""
    found = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]:
        text = page.read_text().replace("\\\n", " ")
        lines = re.findall(r"^    (?:\w+=\d+ )?(basis-search .*)$", text, flags=re.M)
        lines += re.findall(r"`(?:\w+=\d+ )?(basis-search [^`]*)`", re.sub(r"\s+", " ", text))
        found += [(page.name, line) for line in lines if "..." not in line]
    return found


@pytest.mark.parametrize(("page", "command"), commands())
def test_commands_are_what_a_shell_and_the_command_line_take(page: str, command: str) -> None:
    """As bash splits it; settings by hydra, without running anything."""
    split = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True)
    assert split.returncode == 0, split.stderr
    _, *arguments = split.stdout.rstrip("\0").split("\0")
    if len(arguments) > 1 and arguments[0] in cli.SCHEMAS and not any(a.isupper() for a in arguments):
        ConfigStore.instance().store(name=f"{arguments[0]}_schema", node=cli.SCHEMAS[arguments[0]])
        overrides = [cli._adding(re.sub(r"^\[(.*)\]$", r"\1", a)) for a in arguments[1:]]
        cli._check_overrides(arguments[0], overrides, complete=True)
    elif arguments:
        assert arguments[0].startswith("-") or arguments[0] in cli.USAGE
