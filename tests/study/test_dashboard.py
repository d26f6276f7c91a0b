"""optuna-dashboard shows the studies of a search."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch

import basis_search as bs
from basis_search.study.search import search

TRIALS = 3


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    layer = bs.Layer.from_linear(torch.nn.Linear(12, 16), torch.randn(64, 12), "up")
    search(layer, ("lowrank",), trials=TRIALS, storage=tmp_path / "studies.journal")
    return tmp_path / "studies.journal"


def fetched(url: str, process: subprocess.Popen[str]) -> str:
    for _ in range(300):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise AssertionError(f"no answer from {url}")


def test_dashboard_shows_the_study_with_its_three_objectives(journal: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = Path(sys.executable).with_name("optuna-dashboard")
    process = subprocess.Popen(
        [command, str(journal), "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        assert "<title>" in fetched(f"http://127.0.0.1:{port}/dashboard/", process)
        summaries: Any = json.loads(fetched(f"http://127.0.0.1:{port}/api/studies", process))["study_summaries"]
        (study,) = summaries
        assert study["study_name"] == "up/lowrank"
        assert study["directions"] == ["minimize"] * 3
        detail = json.loads(fetched(f"http://127.0.0.1:{port}/api/studies/{study['study_id']}", process))
        done = [trial for trial in detail["trials"] if trial["state"] == "Complete"]
        assert len(done) >= TRIALS
        assert all(len(trial["values"]) == 3 for trial in done)
    finally:
        process.terminate()
        process.wait(60)
