"""Rounding with error feedback: tiles give what one weight after another gives, and beyond a limit columns alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from basis_search.families.protocol import error_feedback, rounded_in_metric
from basis_search.layers.layer import Layer
from basis_search.layers.output_metric import OutputMetric

pytestmark = pytest.mark.fast

OUT, IN = 37, 70


def nearest(values: Tensor, step: Tensor, zero: Tensor) -> Tensor:
    return (values / step).round().clamp(-7, 7) * step


def one_after_another(weight: Tensor, lower: Tensor, upper: Tensor, step: Tensor) -> Tensor:
    found, lost = torch.empty_like(weight), torch.zeros_like(weight)
    for j in range(weight.shape[1]):
        for i in reversed(range(weight.shape[0])):
            felt = lower[:, i] @ lost @ upper[:, j]
            target = weight[i, j] + felt / (lower[i, i] * upper[j, j])
            found[i, j] = nearest(target, step[i, j], step[i, j])
            lost[i, j] = weight[i, j] - found[i, j]
    return found


def a_problem(dtype: torch.dtype = torch.float64) -> tuple[Layer, Tensor]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(600, IN, generator=draw) @ torch.randn(IN, IN, generator=draw)
    root = torch.randn(OUT, 12, generator=draw)
    metric = OutputMetric(root @ root.T + 0.05 * torch.eye(OUT))
    layer = Layer("l", torch.randn(OUT, IN, generator=draw), None, x[:400], x[400:], 8, dtype, output_metric=metric)
    weight = layer.weight.to(dtype)
    return layer, (weight.abs().amax(1) / 7)[:, None]


@pytest.mark.slow
def test_tiles_give_what_one_weight_after_another_gives() -> None:
    draw = torch.Generator().manual_seed(1)
    weight = torch.randn(OUT, IN, generator=draw).double()
    step = 0.2 + torch.rand(OUT, IN, generator=draw).double()
    lower = torch.linalg.cholesky(torch.cov(torch.randn(OUT, 80, generator=draw).double()))
    upper = torch.linalg.cholesky(torch.cov(torch.randn(IN, 99, generator=draw).double())).mT.contiguous()
    want = one_after_another(weight, lower, upper, step)
    found = error_feedback._by_tiles(lower, upper, nearest, weight, step, torch.zeros_like(step))
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)
    by_columns = error_feedback._by_columns(weight, upper, nearest, step, torch.zeros_like(step))
    want = one_after_another(weight, torch.eye(OUT).double(), upper, step)
    torch.testing.assert_close(by_columns, want, rtol=1e-12, atol=1e-12)


def test_feedback_from_both_sides_is_better_than_from_inputs_and_that_than_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer, step = a_problem()
    weight, metric = layer.weight.double(), layer.output_metric
    assert metric is not None
    damages = [float(metric.damage(weight - nearest(weight, step, step), layer.second_moment))]
    for limit in (0, error_feedback.MOST_PRODUCTS):
        monkeypatch.setattr(error_feedback, "MOST_PRODUCTS", limit)
        found = rounded_in_metric(layer, weight, nearest, step)
        assert found is not None
        damages.append(float(metric.damage(weight - found, layer.second_moment)))
    assert damages[1] < 0.8 * damages[0]
    assert damages[2] < 0.5 * damages[1]


def test_grids_without_room_keep_the_nearest_rounding() -> None:
    """Every value is cut off: there feedback would only add errors up."""
    layer, step = a_problem()
    weight = layer.weight.double()
    found = rounded_in_metric(layer, weight, nearest, step * 1e-3)
    assert found is not None
    metric = layer.output_metric
    assert metric is not None
    plain = nearest(weight, step * 1e-3, step)
    assert metric.damage(weight - found, layer.second_moment) <= metric.damage(weight - plain, layer.second_moment)
