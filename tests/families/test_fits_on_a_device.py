"""Fits and forecasts where the layer is: on the double of a CUDA device as on the CPU, waiting for it seldom."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from conformance import layer
from fake_cuda_devices import FakeCuda

from basis_search.families import FAMILIES, dense, int8, lowrank, stl
from basis_search.families.stl import normal_equations
from basis_search.layers import principal_directions
from basis_search.layers.layer import Layer
from basis_search.layers.output_metric import OutputMetric

SHAPE = (64, 48)
CASES = [
    pytest.param("dense", dense.Spec(), 0, id="dense"),
    pytest.param("int8", int8.Spec(), 0, id="int8"),
    pytest.param("lowrank", lowrank.Spec(5), 3, id="lowrank"),
    pytest.param("stl", stl.Spec(2, 7, "winograd"), 4, id="stl-exact"),
    pytest.param("stl", stl.Spec(4, 16, "ternary"), 10, id="stl-ternary"),
    pytest.param("stl", stl.Spec(4, 24), 24, id="stl-approximate"),
    pytest.param("stl", stl.Spec(4, 24, sweeps=4), 32, id="stl-swept"),
    pytest.param("stl", stl.Spec(4, 24, waist=8), 70, id="stl-low-rank"),
]
"""Family, spec, and how often at most a fit waits for the device."""


def on_both(moment: bool) -> tuple[Layer, Layer]:
    """The layer on the CPU and on the double, with a second moment over more rows or without one."""
    plain = layer(SHAPE)
    here = dataclasses.replace(plain, moment=plain.second_moment * 1.01 if moment else None)
    return here, here.to("cuda:0")


@pytest.mark.parametrize("moment", [False, True])
@pytest.mark.parametrize(("name", "spec", "waits"), CASES)
def test_a_fit_equals_the_cpus_and_seldom_waits(
    name: str, spec: Any, waits: int, moment: bool, fake_cuda: FakeCuda
) -> None:
    here, there = on_both(moment)
    expected = FAMILIES[name].fit(spec, here)
    there.on_device()  # copies the layer, which waits too
    before = fake_cuda.synchronizations
    params = FAMILIES[name].fit(spec, there)
    assert fake_cuda.synchronizations - before <= waits
    assert {tensor.device for tensor in params.values()} == {torch.device("cuda:0")}
    assert params.keys() == expected.keys()
    for key, tensor in params.items():
        torch.testing.assert_close(tensor.cpu(), expected[key], msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize(("name", "spec", "waits"), CASES)
def test_a_forecast_equals_the_cpus(name: str, spec: Any, waits: int, fake_cuda: FakeCuda) -> None:
    here, there = on_both(True)
    expected = FAMILIES[name].forecast(spec, here)
    there.on_device()
    before = fake_cuda.synchronizations
    found = FAMILIES[name].forecast(spec, there)
    assert fake_cuda.synchronizations - before <= 2
    assert found.error == pytest.approx(expected.error, rel=1e-9)
    assert found.latency_ratio == expected.latency_ratio


def test_wide_layers_do_not_wait_in_every_step(fake_cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conjugate gradients and subspace iteration, which wide layers take, on a layer that is narrow enough to test."""
    monkeypatch.setattr(normal_equations, "LARGEST_SIDE", 100)
    monkeypatch.setattr(normal_equations, "BLOCK_SIDE", 192)
    monkeypatch.setattr(principal_directions, "EXACT_SIDE", 32)
    monkeypatch.setattr(principal_directions, "LEAST_COLUMNS", 8)
    here, there = on_both(False)
    there.on_device()
    for name, spec, most in (
        ("stl", stl.Spec(4, 16, "ternary"), 10 + normal_equations.MOST_STEPS),
        ("lowrank", lowrank.Spec(5), 3),
    ):
        before = fake_cuda.synchronizations
        params = FAMILIES[name].fit(spec, there)
        assert fake_cuda.synchronizations - before <= most, name
        for key, tensor in FAMILIES[name].fit(spec, here).items():
            torch.testing.assert_close(params[key].cpu(), tensor)


METRIC_CASES = [
    pytest.param("lowrank", lowrank.Spec(5), 16, id="lowrank"),
    pytest.param("stl", stl.Spec(4, 24), 64, id="stl-approximate"),
    pytest.param("stl", stl.Spec(4, 24, waist=8), 145, id="stl-low-rank"),
]


@pytest.mark.parametrize(("name", "spec", "waits"), METRIC_CASES)
def test_a_fit_in_an_output_metric_equals_the_cpus_and_seldom_waits(
    name: str, spec: Any, waits: int, fake_cuda: FakeCuda
) -> None:
    plain = layer(SHAPE)
    gradients = torch.randn(200, SHAPE[1], generator=torch.Generator().manual_seed(0)).cumsum(1)
    here = dataclasses.replace(plain, output_metric=OutputMetric(gradients.T @ gradients / 200))
    there = here.to("cuda:0")
    expected = FAMILIES[name].fit(spec, here)
    there.on_device()
    before = fake_cuda.synchronizations
    params = FAMILIES[name].fit(spec, there)
    assert fake_cuda.synchronizations - before <= waits
    for key, tensor in params.items():
        assert tensor.device == torch.device("cuda:0")
        torch.testing.assert_close(tensor.cpu(), expected[key], msg=lambda text, key=key: f"{key}: {text}")
