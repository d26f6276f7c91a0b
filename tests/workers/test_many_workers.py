"""Workers started by the command line: killed in the middle, out of disk, in a wrong folder, with a clock set back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import basis_search as bs
from basis_search.bench.search import parallel_workers
from basis_search.workers.evaluation_log import Record

SMALL = ("families=[dense,lowrank]", "trials=4", "report=false", "export=false")


def captured(folder: Path, width: int = 32) -> Path:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, 48), nn.GELU(), nn.Linear(48, 16))
    bs.capture(model, [torch.randn(64, width) for _ in range(3)]).save(folder)
    return folder


def search(layers: Path, run: Path, *options: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """One worker by the command line, after a line of shell."""
    command = [sys.executable, "-m", "basis_search.cli", "search", f"layers={layers}", f"run={run}", *SMALL, *options]
    return subprocess.run(
        ["bash", "-c", f'{before}\nexec "$@"', "bash", *command], capture_output=True, text=True, timeout=240
    )


def test_killed_workers_lose_nothing_and_double_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BASIS_SEARCH_STORAGE", raising=False)
    (row,) = parallel_workers.kills("cpu", 1, count=2, trials=6, crew=2, delay=0.3)
    assert row["evaluations"] == 24
    for name in ("lost", "twice", "claims left", "trials left running"):
        assert row[name] == 0, row


def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk."""
    layers, run = captured(tmp_path / "layers"), tmp_path / "run"
    full = search(layers, run, before="ulimit -f 4")
    assert full.returncode == 2, full.stderr
    assert "cannot be written" in full.stderr
    assert "free space" in full.stderr
    assert "Traceback" not in full.stderr
    assert search(layers, run).returncode == 0, "with room again, the same command goes on"


def test_a_line_that_does_not_fit_leaves_the_record_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "e.jsonl"
    torch.manual_seed(0)
    layer = bs.Layer.from_linear(torch.nn.Linear(32, 32), torch.randn(64, 32), "fc", batch=16)
    bs.search(layer, ("dense",), 1, record=Record(path))
    whole, write = path.read_bytes(), os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:10]))
    with pytest.raises(bs.BadInput, match=r"e\.jsonl cannot be written: .*; free space"):
        bs.search(layer, ("dense", "lowrank"), 2, record=Record(path))
    assert path.read_bytes() == whole


def test_a_folder_is_of_one_model(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert search(captured(tmp_path / "one"), run).returncode == 0
    before = (run / "evaluations.jsonl").read_bytes()
    other = search(captured(tmp_path / "two", width=24), run)
    assert other.returncode == 2
    assert "this run was begun on other layers" in other.stderr
    assert "run=DIR" in other.stderr
    assert (run / "evaluations.jsonl").read_bytes() == before


def test_a_clock_that_is_set_back_in_between_makes_no_negative_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(10**6, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    torch.manual_seed(0)
    layer = bs.Layer.from_linear(torch.nn.Linear(32, 32), torch.randn(64, 32), "fc", batch=16)
    bs.search(layer, ("dense", "lowrank"), 3, record=Record(tmp_path / "e.jsonl"))
    lines = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    assert all(line["finished"] > line["started"] for line in lines)


def test_a_url_in_the_config_is_refused_without_its_password(tmp_path: Path) -> None:
    refused = search(captured(tmp_path / "layers"), tmp_path / "run", "storage='postgresql://me:hidden@host/x'")
    assert refused.returncode == 2
    assert "BASIS_SEARCH_STORAGE" in refused.stderr
    assert "hidden" not in refused.stderr + refused.stdout
    assert not (tmp_path / "run").exists(), "nothing was saved"


def test_an_unreachable_storage_is_named(tmp_path: Path) -> None:
    layers = captured(tmp_path / "layers")
    there = "export BASIS_SEARCH_STORAGE=postgresql://me:hidden@127.0.0.1:1/x"
    refused = search(layers, tmp_path / "run", before=there)
    assert refused.returncode == 2, os.linesep.join((refused.stdout, refused.stderr))
    assert "the storage postgresql://me:***@127.0.0.1:1/x cannot be reached" in refused.stderr
    assert "hidden" not in refused.stderr + refused.stdout
