"""evaluate(): noisy timings are repeated, a reference workload shows drift of the device, wrong kernels fail."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

import basis_search as bs
from basis_search.evaluation import evaluate as evaluating
from basis_search.evaluation import timing
from basis_search.evaluation.samples import LONG_CALL_SECONDS
from basis_search.evaluation.timing import Timing
from basis_search.families.protocol import tolerance

SPEC = bs.lowrank.Spec(rank=4)


def a_layer() -> bs.Layer:
    torch.manual_seed(0)
    return bs.Layer.from_linear(torch.nn.Linear(32, 32), torch.randn(64, 32), "fc", batch=16)


def measured(spreads: list[float], reference: float = 1e-3) -> Any:
    """A `measure` whose ratios have these spreads, one after another; its ratio tells which one it was."""
    ahead: Iterator[tuple[int, float]] = iter(enumerate(spreads, start=1))

    def measure(functions: dict[str, Any], baseline: str, **options: Any) -> dict[str, Timing]:
        number, spread = next(ahead)
        made = {name: Timing(1e-3, 0.0, float(number), spread) for name in functions}
        return made | {"reference": Timing(reference, 0.0, 1.0, 0.0)}

    return measure


@pytest.mark.parametrize(
    ("spreads", "attempts", "kept"),
    [([0.01], 1, 1), ([0.5, 0.02], 2, 2), ([0.5, 0.3, 0.4], 3, 2), ([0.3, 0.9, 0.8], 3, 1)],
)
def test_unsteady_timings_are_repeated_and_the_steadiest_is_used(
    monkeypatch: pytest.MonkeyPatch, spreads: list[float], attempts: int, kept: int
) -> None:
    monkeypatch.setattr(evaluating, "measure", measured(spreads))
    found = evaluating.evaluate(a_layer(), "lowrank", SPEC)
    assert found.clock["attempts"] == attempts
    assert found.latency_ratio == kept
    assert found.latency_spread == spreads[kept - 1]


def test_the_reference_work_shows_how_much_slower_the_device_has_become(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_fastest", {})
    drifts = []
    for seconds in (2e-3, 1e-3, 3e-3):
        monkeypatch.setattr(evaluating, "measure", measured([0.0], seconds))
        found = evaluating.evaluate(a_layer(), "lowrank", SPEC)
        assert found.clock["reference"] == seconds
        drifts.append(found.clock["drift"])
    assert drifts == [1.0, 1.0, 3.0]


def test_the_reference_work_is_timed() -> None:
    found = evaluating.evaluate(a_layer(), "lowrank", SPEC)
    assert found.clock["reference"] > 0
    assert found.clock["drift"] >= 1
    assert "reference" not in found.kernels


def test_slow_rivals_are_timed_no_further() -> None:
    now, calls = 0.0, dict.fromkeys(("base", "fast", "near", "slow", "hopeless"), 0)
    took = {"base": 8e-3, "fast": 1e-3, "near": 1.5e-3, "slow": 3e-3, "hopeless": 9e-3}

    def function(name: str) -> None:
        nonlocal now
        now += took[name]
        calls[name] += 1

    def race(rivals: tuple[str, ...]) -> dict[str, Timing]:
        calls.update(dict.fromkeys(calls, 0))
        functions = {name: lambda name=name: function(name) for name in took}
        return timing.measure(functions, "base", rounds=11, seconds=0.0, timer=lambda: now, rivals=rivals)

    timings = race(("fast", "near", "slow", "hopeless"))
    warming = {name: 3 if seconds < LONG_CALL_SECONDS else 2 for name, seconds in took.items()}
    samples = {name: calls[name] - warming[name] for name in calls}
    assert samples == {"base": 11, "fast": 11, "near": 11, "slow": 3, "hopeless": 1}
    for name, seconds in took.items():
        assert timings[name].seconds == pytest.approx(seconds)
        assert timings[name].ratio == pytest.approx(seconds / took["base"])
    race(())
    assert {name: calls[name] - warming[name] for name in calls} == dict.fromkeys(took, 11)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_a_missing_device_is_refused() -> None:
    layer = bs.Layer.from_linear(torch.nn.Linear(8, 8), torch.randn(16, 8), "fc")
    with pytest.raises(bs.BadInput, match=r"the device 'cuda:0' that a layer runs on is not there"):
        bs.search(replace(layer, device=torch.device("cuda:0")), ("dense",), 1)


@pytest.mark.parametrize("family", ["dense", "lowrank"])
def test_rounding_of_cancelling_inputs_is_tolerated_and_a_wrong_kernel_is_not(
    monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """Inputs far from zero, weights whose rows sum to zero: of the terms a hundredth is left."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(256, 64, bias=False)
    with torch.no_grad():
        linear.weight -= linear.weight.mean(1, keepdim=True)
    layer = bs.Layer.from_linear(linear, torch.randn(1024, 256) + 100, "fc", batch=64)
    module = bs.families.family(family)
    spec = SPEC if family == "lowrank" else module.Spec()
    found = evaluating.evaluate(layer, family, spec)
    assert found.failure is None
    assert found.gap > tolerance(layer.dtype, 256)

    def wrong(kernel: Any) -> Any:
        return replace(kernel, run=lambda s, packed, x: kernel.run(s, packed, x) * (1 + 1e-3))

    reference, *fast = module.KERNELS
    monkeypatch.setattr(module, "KERNELS", (reference, *map(wrong, fast)))
    failure = evaluating.evaluate(layer, family, spec).failure or ""
    assert re.search(r"differs from its reference by \S+; rounding explains at most \d", failure)


def test_an_output_that_is_not_finite_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    module = bs.families.family("lowrank")
    reference, torchs = module.KERNELS[0], next(k for k in module.KERNELS if k.name == "torch")
    broken = replace(torchs, run=lambda s, packed, x: torchs.run(s, packed, x) * float("nan"))
    monkeypatch.setattr(module, "KERNELS", (reference, broken))
    assert "kernel 'torch' differs from its reference by inf" in (
        evaluating.evaluate(a_layer(), "lowrank", SPEC).failure or ""
    )
