"""A run of the command line on a GPU, pretended: search, resume, report, and an export where there is no GPU."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pretend_cuda import pretend_cuda
from torch import nn

import basis_search as bs
from basis_search import cli
from basis_search.evaluation.evaluate import evaluate
from basis_search.workers import subprocess_evaluator


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates are evaluated in this process, since another one would see no pretended GPU."""

    @contextlib.contextmanager
    def here(*limits: Any, **options: Any) -> Iterator[Callable[..., bs.Evaluation]]:
        yield evaluate

    monkeypatch.setattr(subprocess_evaluator, "SubprocessEvaluator", here)


@pytest.mark.usefixtures("in_process")
def test_a_search_on_a_gpu_is_finished_resumed_and_exported_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["basis-search"])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
    bs.capture(model, [torch.randn(32, 16) for _ in range(4)]).save("layers")
    command = ["search", "layers=layers", "run=run", "device=cuda", "dtype=bfloat16", "families=[dense,lowrank]",
               "trials=2", "budgets={flops: [0.9]}", "max_latency=null", "sampler=random", "select=['0']"]  # fmt: skip
    with pretend_cuda():
        for worker in (0, 1):
            assert cli.main([*command, f"worker={worker}"]) == 0
        assert cli.main([*command, "clock=eager"]) == 2
    said = capsys.readouterr()
    assert "was begun with clock graph, not eager" in said.err
    lines = [json.loads(line) for line in Path("run/evaluations.jsonl").read_text().splitlines()]
    assert {line["worker"] for line in lines} == {0}, "worker 1, on the other GPU, found everything known"
    assert {(line["device"]["name"], line["kind"].rpartition(", ")[2]) for line in lines} == {
        ("Pretended GPU", "torch.bfloat16")
    }
    assert "Pretended GPU" in Path("run/report.html").read_text()
    assert cli.main(["export", "run", "--flops", "0.9", "--latency", "inf", "--out", "smaller"]) == 0
    replaced = bs.load_pretrained(model.bfloat16(), "smaller")
    assert replaced(torch.randn(4, 16).bfloat16()).isfinite().all()
