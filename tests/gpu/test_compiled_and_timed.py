"""What only a GPU can show: compiled graphs, both clocks, an unusable context. The families' own tests run too."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
import torch
from conformance import BATCH, SHAPES, inputs, layer, specs

import basis_search as bs
from basis_search.evaluation.evaluate import evaluate
from basis_search.families import FAMILIES
from basis_search.families.protocol import relative_gap, tolerance
from basis_search.workers import subprocess_evaluator

pytestmark = pytest.mark.gpu
DTYPE = torch.bfloat16


def a_candidate(name: str) -> tuple[bs.Layer, object]:
    for shape in SHAPES:
        for spec in specs(name, shape, "gpu"):
            return layer(shape, dtype=DTYPE, where="gpu"), spec
    pytest.skip(f"{name} refuses every layer of {SHAPES} on this GPU")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_module_compiles_whole_with_cuda_graphs(name: str) -> None:
    of, spec = a_candidate(name)
    module = bs.fit(of, name, spec)
    compiled = torch.compile(module, fullgraph=True, mode="reduce-overhead")
    with torch.no_grad():
        for seed in range(4):  # recorded in the second call, replayed from then on
            x = inputs(BATCH, of.in_features, DTYPE, seed, "gpu")
            y = compiled(x).clone()
            assert relative_gap(y, module(x)) <= tolerance(DTYPE, of.in_features, 1.0)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_candidate_is_timed_by_both_clocks(name: str) -> None:
    of, spec = a_candidate(name)
    for clock in ("eager", "graph"):
        found = evaluate(of, name, spec, clock=clock)
        assert found.failure is None
        assert found.timed == clock
        assert found.latency > 0
        assert found.latency_graph is not None
        assert found.latency_graph > 0
        assert found.host_seconds is not None
        assert found.host_seconds > 0
    assert found.device.name == torch.cuda.get_device_name()


CHILD = """
import sys, torch
from basis_search.families import lowrank
from basis_search.workers import subprocess_evaluator
real = lowrank.fit

def fit(spec, layer):
    if spec.rank == 1:
        torch.zeros(1, device="cuda")[torch.tensor([9], device="cuda")].cpu()
    return real(spec, layer)

lowrank.fit = fit
subprocess_evaluator.main(int(sys.argv[1]))
"""


def test_a_candidate_that_makes_the_context_unusable_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    of, popen = layer(SHAPES[0], dtype=DTYPE, where="gpu"), subprocess.Popen

    def started(command: list[str], **pipes: Any) -> Any:
        return popen([*command[: command.index("-m")], "-c", CHILD, command[-1]], **pipes)

    monkeypatch.setattr(subprocess_evaluator.subprocess, "Popen", started)
    with subprocess_evaluator.SubprocessEvaluator() as evaluator:
        assert evaluator(of, "lowrank", bs.lowrank.Spec(rank=4)).failure is None
        assert "device-side assert" in str(evaluator(of, "lowrank", bs.lowrank.Spec(rank=1)).failure)
        assert evaluator(of, "lowrank", bs.lowrank.Spec(rank=4)).failure is None
