"""The same small search by two workers on a running SLURM and Ray; ./scripts/test-cluster prepares and runs them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import postgres
import pytest
import slurm
import torch
from torch import nn

import basis_search as bs

pytestmark = pytest.mark.cluster
ENVIRONMENTS = Path(__file__).parents[2] / "build" / "cluster"
SMALL = ("families=[dense,lowrank]", "trials=6", "report=false", "export=false", "budgets={flops:[0.9]}")


@pytest.fixture
def captured(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64))
    bs.capture(model, [torch.randn(64, 64) for _ in range(3)]).save(tmp_path / "layers")
    return tmp_path / "layers"


@pytest.fixture
def cluster() -> Iterator[slurm.Slurm]:
    if lacking := slurm.missing():
        assert "CI" not in os.environ, f"no SLURM here: {lacking}"
        pytest.skip(f"no SLURM here, {', '.join(lacking)} is missing: ./scripts/test-cluster installs it where it may")
    node = slurm.Slurm()
    try:
        node.start()
        yield node
    finally:
        node.stop()


def python_of(kind: str) -> str:
    """The interpreter that has the launcher: SLURM's and Ray's exclude each other."""
    python = ENVIRONMENTS / kind / "bin" / "python"
    if not python.exists():
        assert "CI" not in os.environ, f"{python} is missing"
        pytest.skip(f"{python} is missing: ./scripts/test-cluster makes it")
    return str(python)


def search(kind: str, captured: Path, run: Path, environment: dict[str, str], *options: str) -> list[dict[str, object]]:
    """Two workers of one search by the launcher of that kind; returns what they wrote down."""
    command = [python_of(kind), "-m", "basis_search.cli", "search", "-m", "worker=range(2)", f"layers={captured}"]
    command += [f"run={run}", *SMALL, *options]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, cwd=run.parent)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]


def check(lines: list[dict[str, object]], run: Path) -> None:
    found = [(line["layer_hash"], line["candidate"]["hash"]) for line in lines]  # type: ignore[index]
    assert len(found) == len(set(found)) == 2 * (1 + 6), "each candidate once, and all of them"
    assert not [line["failure"] for line in lines if line["failure"] and not line.get("stopped")]
    assert json.loads((run / "claims.json").read_text())["workers"] == {}, "every worker left"
    assert (run / "front.json").is_file(), "the last one finished the run"
    assert (run / "plans.json").is_file()


def test_slurm_with_a_journal(cluster: slurm.Slurm, captured: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("hydra/launcher=submitit_slurm", "hydra.launcher.mem_gb=null", "hydra.launcher.timeout_min=5")
    try:
        check(search("slurm", captured, run, cluster.environment, *options), run)
    except BaseException:
        print(cluster.ask("squeue"), cluster.logs()[-4000:])
        raise
    assert len(list((run / ".submitit").glob("*/*_submission.sh"))) >= 1


def test_slurm_with_postgresql_reached_by_the_environment(cluster: slurm.Slurm, captured: Path, tmp_path: Path) -> None:
    if postgres.binaries() is None:
        assert "CI" not in os.environ, "no PostgreSQL on this machine: ./scripts/test installs it"
        pytest.skip("no PostgreSQL on this machine")
    server, run = postgres.Server(), tmp_path / "run"
    try:
        server.start()
        environment = {**cluster.environment, "BASIS_SEARCH_STORAGE": server.url()}
        options = ("hydra/launcher=submitit_slurm", "hydra.launcher.mem_gb=null", "hydra.launcher.timeout_min=5")
        lines = search("slurm", captured, run, environment, *options)
        assert len({(line["layer_hash"], line["candidate"]["hash"]) for line in lines}) == len(lines) == 14  # type: ignore[index]
        assert (run / "front.json").is_file()
    finally:
        server.remove()
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and postgres.PASSWORD.encode() in path.read_bytes()]
    assert kept == [], "the password is in no file"


def test_ray(captured: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = (
        "hydra/launcher=ray",
        "+hydra.launcher.ray.init.num_cpus=2",
        "+hydra.launcher.ray.init.include_dashboard=false",
    )
    check(search("ray", captured, run, dict(os.environ), *options), run)
