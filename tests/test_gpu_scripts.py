"""./scripts/gpu and ./scripts/gpu-wheels: what they ask for, and what they refuse."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def output(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)


def test_the_wheels_are_what_the_project_needs_beyond_torch() -> None:
    asked = output(sys.executable, "scripts/gpu-wheels", "--requirements").stdout.split("\n")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    left = [r for r in project["dependencies"] if r not in asked]
    assert [r.split(">")[0] for r in left] == ["torch", "wandb", "triton"]
    assert "pytest>=8" in asked
    assert output(sys.executable, "scripts/gpu-wheels", "--version").stdout.strip() == project["version"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--wheels", "nowhere"], "--wheels: there is no folder nowhere"),
        (["--wheels"], "--wheels needs a folder"),
        ([], "sees no NVIDIA GPU here; --device cpu rehearses without one"),
    ],
)
def test_the_script_refuses_with_a_sentence(arguments: list[str], sentence: str) -> None:
    done = output("./scripts/gpu", *arguments, PYTHON=sys.executable, CUDA_VISIBLE_DEVICES="")
    assert sentence in done.stderr
    assert done.returncode != 0
    assert output("./scripts/gpu", "--help").stdout.startswith("On a machine with an NVIDIA GPU")
