"""Forecasts: predicted errors compared with those of the fit."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import optuna
import pytest
import torch
from conformance import for_gpus

import basis_search as bs
from basis_search.evaluation.operator_error import operator_errors
from basis_search.families import FAMILIES, fp8, int8, kronecker, lowrank, pq, sparse24, stl, weight_only
from basis_search.layers import output_spectrum
from basis_search.layers.output_metric import OutputMetric

optuna.logging.set_verbosity(optuna.logging.ERROR)


def a_layer(out: int = 48, features: int = 32, *, mixed: bool = True, bias: bool = True) -> bs.Layer:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4096, features, generator=generator)
    if mixed:
        rows = rows @ torch.randn(features, features, generator=generator) + 0.3
    linear = torch.nn.Linear(features, out, bias=bias)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(out, features, generator=generator))
    return bs.Layer.from_linear(linear, rows, batch=64)


def fitted_error(layer: bs.Layer, family: str, spec: Any) -> float:
    module = FAMILIES[family]
    reference = module.KERNELS[0]
    params = reference.pack(spec, module.fit(spec, layer))
    return operator_errors(layer, reference.run(spec, params, layer.held_out.double())).searched


def with_metric(layer: bs.Layer, matrix: torch.Tensor | None = None) -> bs.Layer:
    """The layer with an output metric of a few strong directions, or that of the matrix."""
    if matrix is None:
        draw = torch.Generator().manual_seed(1)
        shape = layer.out_features, layer.out_features
        mixing = torch.randn(shape, generator=draw) * torch.arange(1, shape[1] + 1) ** -0.7
        matrix = mixing @ mixing.T
    return replace(layer, output_metric=OutputMetric(matrix))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("out", "features"), [(48, 32), (24, 40)])
def test_energies_are_those_of_the_outputs(out: int, features: int, bias: bool) -> None:
    layer = a_layer(out, features, bias=bias)
    y = layer.inputs.double() @ layer.weight.double().T
    centred = y - y.mean(0) if bias else y
    expected = torch.linalg.svdvals(centred).square() / y.square().sum()
    torch.testing.assert_close(
        output_spectrum.output_energies(layer), expected[: min(out, features)], rtol=1e-8, atol=1e-9
    )
    assert output_spectrum.output_power(layer) == pytest.approx(float(y.square().sum(1).mean()))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("out", "features"), [(48, 32), (24, 40)])
def test_energies_in_a_metric_are_two_sided(out: int, features: int, bias: bool) -> None:
    layer = with_metric(a_layer(out, features, bias=bias))
    assert layer.output_metric is not None
    G = layer.output_metric.dense()
    values, axes = torch.linalg.eigh(G)
    root = axes * values.clamp_min(0).sqrt() @ axes.T
    y = layer.inputs.double() @ layer.weight.double().T @ root
    centred = y - y.mean(0) if bias else y
    expected = torch.linalg.svdvals(centred).square() / y.square().sum()
    found = output_spectrum.output_energies(layer)
    torch.testing.assert_close(found, expected[: min(out, features)], rtol=1e-6, atol=1e-9)
    assert float((found - output_spectrum.output_energies(replace(layer, output_metric=None))).abs().max()) > 0.01


@pytest.mark.parametrize("name", list(FAMILIES))
def test_forecasts_in_the_identity_metric_are_the_plain_ones(name: str) -> None:
    layer, module = a_layer(64, 32), FAMILIES[name]
    same, none = with_metric(layer, torch.eye(64)), with_metric(layer, torch.zeros(64, 64))
    doubled = with_metric(layer, 2 * torch.eye(64))
    for spec in module.examples(layer):
        plain = module.forecast(spec, layer).error
        assert module.forecast(spec, same).error == pytest.approx(plain, rel=1e-6, abs=1e-12)
        assert module.forecast(spec, doubled).error == pytest.approx(plain, rel=1e-6, abs=1e-12)
        assert module.forecast(spec, none).error <= 1e-12  # the model's output does not depend on the layer


def test_rounding_is_predicted_in_a_metric() -> None:
    layer = with_metric(a_layer())
    for name, module in (("int8", int8), ("fp8", fp8), ("weight_only", weight_only)):
        for spec in module.examples(layer):
            found = fitted_error(layer, name, spec)
            assert found / 2 < module.forecast(spec, layer).error < 2.5 * found, (name, spec)


def test_lowrank_is_predicted_by_the_spectrum() -> None:
    layer = a_layer()
    for rank in (1, 7, 15, 19):
        found = fitted_error(layer, "lowrank", lowrank.Spec(rank))
        assert lowrank.forecast(lowrank.Spec(rank), layer).error == pytest.approx(found, rel=0.15)


def test_two_factors_on_uncorrelated_inputs_are_predicted_by_their_blocks() -> None:
    layer = a_layer(mixed=False)
    for chain in ("(1,6,8,8)*(4,16,8,1)", "(1,12,8,4)*(8,4,4,1)", "(1,12,16,4)*(8,8,4,1)"):
        spec = kronecker.Spec(chain)
        assert kronecker.forecast(spec, layer).error == pytest.approx(fitted_error(layer, "kronecker", spec), rel=0.15)


def test_rounding_to_int8_is_predicted_by_the_steps() -> None:
    layer = a_layer()
    for spec in (int8.Spec(reduce_range=False), int8.Spec(reduce_range=True)):
        found = fitted_error(layer, "int8", spec)
        assert found / 2 < int8.forecast(spec, layer).error < 2 * found


@pytest.mark.parametrize("mixed", [True, False])
def test_gpu_baselines_are_predicted_by_their_steps(mixed: bool) -> None:
    layer = a_layer(mixed=mixed)
    for name, module in (("fp8", fp8), ("sparse24", sparse24), ("weight_only", weight_only)):
        for spec in module.examples(layer):
            found = fitted_error(layer, name, spec)
            assert found / 1.2 < module.forecast(spec, layer).error < 2 * found, spec


def test_exact_tiles_have_no_error_and_others_no_more_than_predicted() -> None:
    layer = a_layer(64, 64)
    assert stl.forecast(stl.Spec(2, 7, "winograd"), layer).error < 1e-12
    for spec in (stl.Spec(4, 24), stl.Spec(2, 5), stl.Spec(4, 40, waist=8)):
        assert fitted_error(layer, "stl", spec) < 1.1 * stl.forecast(spec, layer).error


def test_more_codebooks_leave_less_of_the_inputs() -> None:
    layer = a_layer()
    predicted = [pq.forecast(pq.Spec(count), layer).error for count in (2, 4, 8, 16)]
    found = [fitted_error(layer, "pq", pq.Spec(count)) for count in (2, 4, 8, 16)]
    assert predicted == sorted(predicted, reverse=True)
    for forecast, fitted in zip(predicted, found, strict=True):
        assert fitted / 4 < forecast < 4 * fitted


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_suggestion_has_a_finite_forecast(name: str) -> None:
    layer, module = a_layer(64, 32), FAMILIES[name]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for number in range(20):
        if for_gpus(name):
            spec = module.examples(layer)[number % len(module.examples(layer))]
        else:
            spec = module.suggest(study.ask(), layer, module.Space())
        forecast = module.forecast(spec, layer)
        assert 0 <= forecast.error < math.inf
        assert 0 < forecast.latency_ratio < math.inf
        assert module.forecast(spec, layer) == forecast


def test_a_layer_whose_outputs_are_zero_has_finite_forecasts() -> None:
    layer = bs.Layer.from_linear(torch.nn.Linear(16, 16), torch.zeros(64, 16), batch=8)
    for name, spec in (("lowrank", lowrank.Spec(2)), ("kronecker", kronecker.Spec("(1,4,4,4)*(4,4,4,1)"))):
        assert math.isfinite(FAMILIES[name].forecast(spec, layer).error)
