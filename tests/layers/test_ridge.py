"""Ridges: few rows and few gradients are trusted less, and both forms of a metric give the same."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from basis_search.layers.layer import Layer
from basis_search.layers.output_metric import OutputMetric
from basis_search.layers.output_spectrum import covariance
from basis_search.layers.ridge import INPUT_RIDGES, fitting_metric, input_ridge, output_ridge

pytestmark = pytest.mark.fast


def a_layer(rows: int, *, bias: bool = True, k: int = 32, m: int = 20) -> Layer:
    """Inputs of unequal variances that share directions, and a metric of 100 gradients."""
    draw = torch.Generator().manual_seed(k)
    mix = torch.randn(k, k, generator=draw) * torch.logspace(0, -2, k)
    x = torch.randn(4000, k, generator=draw) @ mix.T + 0.5
    gradients = torch.randn(100, m, generator=draw) * torch.logspace(0, -1, m)
    return Layer(
        "layer",
        torch.randn(m, k, generator=draw),
        torch.zeros(m) if bias else None,
        x[:rows],
        x[-50:],
        4,
        output_metric=OutputMetric(gradients.T @ gradients / 100),
    )


@pytest.mark.parametrize("bias", [True, False])
def test_fewer_rows_get_a_larger_ridge(bias: bool) -> None:
    few, many = input_ridge(a_layer(24, bias=bias)), input_ridge(a_layer(3000, bias=bias))
    assert few is not None
    assert many is not None
    assert many <= INPUT_RIDGES[1] < few


def test_the_chosen_ridge_predicts_unseen_rows_better_than_the_least() -> None:
    layer, many = a_layer(24), a_layer(3900)
    ridge = input_ridge(layer)
    assert ridge is not None

    def error(relative: float) -> float:
        raised = covariance(layer)
        raised = raised + relative * raised.diagonal().mean() * torch.eye(32)
        left = many.weight.double().clone()
        kept = slice(0, 12)
        left[:, kept] -= torch.linalg.solve(raised[kept, kept], raised[kept] @ left.T).T
        assert layer.output_metric is not None
        return float(layer.output_metric.damage(left, covariance(many)))

    assert error(ridge) < 0.9 * error(INPUT_RIDGES[0])


def test_rows_that_a_fit_may_not_see_choose_nothing() -> None:
    layer = a_layer(24)
    other = dataclasses.replace(layer, held_out=100 * torch.randn(50, 32))
    assert input_ridge(layer) == input_ridge(other)


def test_a_metric_of_fewer_rows_is_shrunk_more_and_its_mean_is_1() -> None:
    few, many = a_layer(50), a_layer(3000)
    ridges = output_ridge(few), output_ridge(many)
    assert ridges[0] is not None
    assert ridges[1] is not None
    assert 30 * ridges[1] < ridges[0] < 1
    metric = fitting_metric(few)
    assert metric is not None
    assert few.output_metric is not None
    given = few.output_metric.dense()
    raised = given + ridges[0] * given.diagonal().mean() * torch.eye(20)
    torch.testing.assert_close(metric.dense(), raised / raised.diagonal().mean())


def test_both_forms_of_a_metric_have_the_same_ridge() -> None:
    layer = a_layer(100)
    thin = OutputMetric(rest=torch.linspace(0, 1, 20), factor=torch.linspace(-1, 1, 60).reshape(20, 3).sin())
    wide, whole = (dataclasses.replace(layer, output_metric=form) for form in (thin, OutputMetric(thin.dense())))
    assert output_ridge(wide) == pytest.approx(output_ridge(whole))
    metrics = fitting_metric(wide), fitting_metric(whole)
    assert metrics[0] is not None
    assert metrics[1] is not None
    torch.testing.assert_close(metrics[0].dense(), metrics[1].dense())


@pytest.mark.parametrize("matrix", [torch.zeros(20, 20), torch.eye(20), 3 * torch.eye(20)])
def test_a_metric_that_weighs_nothing_leaves_the_families_their_regularisation(matrix: Tensor) -> None:
    layer = dataclasses.replace(a_layer(100), output_metric=OutputMetric(matrix))
    for of in (layer, dataclasses.replace(layer, output_metric=None)):
        assert input_ridge(of) is None
        assert output_ridge(of) is None
        assert fitting_metric(of) is None


def test_layers_of_few_rows_or_one_input_hold_out_none() -> None:
    assert input_ridge(a_layer(7)) is None
    assert input_ridge(a_layer(100, k=1)) is None


def test_wide_outputs_choose_by_random_combinations() -> None:
    assert input_ridge(a_layer(3000, m=700)) in INPUT_RIDGES[:2]
