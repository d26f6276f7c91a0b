"""Weighted errors and damages: closed form, the identity metric, no influence, what a search does with them, JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from pretend_cuda import pretend_cuda

import basis_search as bs
from basis_search.evaluation.candidate import Evaluation
from basis_search.evaluation.evaluate import evaluate
from basis_search.evaluation.operator_error import held_out_errors, operator_errors
from basis_search.evaluation.pareto import ParetoFront
from basis_search.families import FAMILIES
from basis_search.layers.output_metric import OutputMetric
from basis_search.study.early_stopping import dominating

SPEC = bs.lowrank.Spec(rank=4)


def a_layer(metric: OutputMetric | None = None) -> bs.Layer:
    torch.manual_seed(0)
    layer = bs.Layer.from_linear(torch.nn.Linear(16, 12), torch.randn(200, 16) + 0.5, "fc", batch=16)
    return replace(layer, output_metric=metric)


def a_metric() -> torch.Tensor:
    factor = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
    return factor @ factor.T + 0.01 * torch.eye(12)


@pytest.mark.fast
def test_the_weighted_error_is_of_rows_in_the_metric() -> None:
    G = a_metric()
    layer = a_layer(OutputMetric(G))
    assert layer.bias is not None
    exact = layer.held_out.double() @ layer.weight.double().T
    error = torch.randn(exact.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = operator_errors(layer, exact + error + layer.bias.double())
    expected = float((error @ G.double() @ error.T).trace() / (exact @ G.double() @ exact.T).trace())
    assert found.weighted == pytest.approx(expected, rel=1e-6)
    assert found.plain == pytest.approx(float(error.square().sum() / exact.square().sum()))
    assert found.damage(layer) == pytest.approx(
        expected * float((G.double() @ layer.weight.double() @ layer.second_moment @ layer.weight.double().T).trace())
    )
    broken = operator_errors(layer, exact * torch.nan)
    assert (broken.plain, broken.weighted) == (float("inf"), float("inf"))
    assert operator_errors(layer, torch.zeros_like(exact) + layer.bias.double()).weighted == pytest.approx(1)


def test_an_evaluation_has_the_weighted_error_and_the_damage() -> None:
    plain = evaluate(a_layer(), "lowrank", SPEC, seconds=0.002)
    assert (plain.weighted_error, plain.damage, plain.searched_error) == (None, None, plain.error)
    layer = a_layer(OutputMetric(torch.eye(12)))
    same = evaluate(layer, "lowrank", SPEC, seconds=0.002)
    assert same.error == pytest.approx(plain.error, rel=1e-5)
    assert same.weighted_error == pytest.approx(same.error, rel=1e-12)
    assert layer.metric_sensitivity is not None
    assert same.damage == pytest.approx(same.error * layer.metric_sensitivity)
    assert same.objectives[0] == same.weighted_error
    felt = evaluate(a_layer(OutputMetric(a_metric())), "lowrank", SPEC, seconds=0.002)
    assert felt.weighted_error is not None
    assert abs(felt.weighted_error - felt.error) > 0.01 * felt.error
    assert felt.layer_hash != plain.layer_hash
    stopped = evaluate(layer, "lowrank", SPEC, most_error=0.0)
    assert stopped.failure is not None
    assert "its weighted error of" in stopped.failure
    assert stopped.rungs["fit"] == pytest.approx(same.weighted_error)


def test_a_layer_without_influence_has_no_damage() -> None:
    found = evaluate(a_layer(OutputMetric(torch.zeros(12, 12))), "lowrank", SPEC, seconds=0.002)
    assert found.failure is None
    assert (found.weighted_error, found.damage) == (0.0, 0.0)
    assert found.error > 0


def test_json_keeps_both_numbers_and_evaluations_of_before_have_none() -> None:
    found = evaluate(a_layer(OutputMetric(a_metric())), "lowrank", SPEC, seconds=0.002)
    data = json.loads(json.dumps(found.to_json()))
    assert Evaluation.from_json(data) == found
    before = {key: value for key, value in data.items() if key not in ("weighted_error", "damage")}
    assert Evaluation.from_json(before).weighted_error is None
    with pytest.raises(bs.BadInput, match="no evaluation"):
        Evaluation.from_json(data | {"damage": [1]})


def test_fronts_and_early_stopping_compare_weighted_errors() -> None:
    made = evaluate(a_layer(OutputMetric(a_metric())), "lowrank", SPEC, seconds=0.002)
    better = replace(made, error=0.5, weighted_error=0.1, latency_ratio=1.0)
    worse = replace(made, error=0.1, weighted_error=0.5, latency_ratio=1.0)
    assert ParetoFront.of([worse, better]).evaluations == (better,)
    assert dominating([worse, better], 9.0, 9.0)[0] == 0.1


def test_weighted_errors_and_forecasts_on_a_device_are_those_of_the_cpu() -> None:
    layer = a_layer(OutputMetric(a_metric()))
    module = FAMILIES["lowrank"]
    params = module.fit(SPEC, layer)
    expected, predicted = held_out_errors(layer, module, SPEC, params), module.forecast(SPEC, layer).error
    with pretend_cuda():
        there = layer.to("cuda")
        moved = {name: tensor.to("cuda") for name, tensor in params.items()}
        found = held_out_errors(there.on_device(), module, SPEC, moved)
        assert found.weighted == pytest.approx(expected.weighted)
        assert found.damage(there.on_device()) == pytest.approx(expected.damage(layer))
        assert module.forecast(SPEC, there).error == pytest.approx(predicted)
