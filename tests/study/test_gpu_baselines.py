"""The families for GPUs alone in a search: tried where their operators run, without a trace on a CPU."""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path

import optuna
import pytest
import torch
from conformance import layer
from pretend_cuda import FakeCuda

import basis_search as bs
from basis_search.evaluation.timing import Timing

optuna.logging.set_verbosity(optuna.logging.WARNING)
BASELINES = ("dense", "int8", "fp8", "sparse24", "weight_only")


def test_a_search_on_a_gpu_tries_each_baseline_once_that_runs_there(
    fake_cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(functions: dict[str, object], *args: object, **options: object) -> dict[str, Timing]:
        return dict.fromkeys(functions, Timing(1e-3, 0.0, 0.9, 0.0))

    monkeypatch.setattr(importlib.import_module("basis_search.evaluation.evaluate"), "measure", measure)
    of, record = layer((64, 48), dtype=torch.bfloat16).to("cuda"), bs.Record()
    bs.search(of, BASELINES, trials=4, record=record, clock="eager")
    # On the double torch has no semi-structured tensors and no product with 4-bit weights.
    assert Counter(e.candidate.family for e in record) == {"dense": 1, "int8": 2, "fp8": 2, "weight_only": 1}
    run = {e.candidate.family: e for e in record if not e.stopped}
    assert not [e.failure for e in run.values() if e.failure]
    for family, kernel in (("int8", "torch-int-mm"), ("fp8", "scaled-mm"), ("weight_only", "int8pack")):
        assert set(run[family].kernels) == {"torch", kernel}
        module = bs.fit(of, family, run[family].candidate.spec)
        assert module.kernel == kernel
        bs.save_pretrained(torch.nn.Sequential(module), tmp_path / family)
        elsewhere = bs.load_pretrained(torch.nn.Sequential(torch.nn.Linear(64, 48)), tmp_path / family).to("cpu")
        with torch.no_grad():
            x = of.held_out.bfloat16()
            torch.testing.assert_close(elsewhere(x), module(x.to("cuda")).cpu(), rtol=0.02, atol=0.02)


def test_a_search_on_a_cpu_leaves_no_trace_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of, record = layer((64, 48)), bs.Record()
    bs.search(of, BASELINES, trials=2, record=record, storage=tmp_path / "studies.journal")
    assert {e.candidate.family for e in record} == {"dense", "int8"}
    studies = (tmp_path / "studies.journal").read_text()
    assert "48x64/int8" in studies
    assert "fp8" not in studies
    assert capsys.readouterr() == ("", "")
    with pytest.raises(bs.BadInput, match=r"fp8: the layer is on cpu, and torch\._scaled_mm is used on CUDA devices"):
        bs.search(of, ("fp8",), trials=1)
