"""OutputMetric: its two forms agree, roots, bad input; a layer that has one: sensitivity, hash, files, devices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pretend_cuda import pretend_cuda

from basis_search.errors import BadInput
from basis_search.layers.collection import Layers
from basis_search.layers.layer import Layer
from basis_search.layers.output_metric import OutputMetric

pytestmark = pytest.mark.fast


def forms() -> list[OutputMetric]:
    """One G [6, 6] as a matrix, and as a diagonal and two directions."""
    draw = torch.Generator().manual_seed(0)
    rest = torch.rand(6, generator=draw, dtype=torch.float64) + 0.1
    factor = torch.randn(6, 2, generator=draw, dtype=torch.float64)
    return [OutputMetric(torch.diag(rest) + factor @ factor.T), OutputMetric(rest=rest, factor=factor)]


def a_layer(metric: OutputMetric | None, outputs: int = 6) -> Layer:
    draw = torch.Generator().manual_seed(1)
    weight, x = torch.randn(outputs, 4, generator=draw), torch.randn(30, 4, generator=draw)
    return Layer("fc", weight, None, x[:20], x[20:], batch=5, output_metric=metric)


def test_both_forms_are_one_metric() -> None:
    matrix, parts = forms()
    draw = torch.Generator().manual_seed(2)
    x, rows = torch.randn(6, 3, generator=draw).double(), torch.randn(9, 6, generator=draw).double()
    G = matrix.dense()
    for metric in (matrix, parts):
        torch.testing.assert_close(metric.dense(), G)
        torch.testing.assert_close(metric.times(x), G @ x)
        torch.testing.assert_close(metric.times(x[:, 0]), G @ x[:, 0])
        torch.testing.assert_close(metric.trace, G.trace())
        torch.testing.assert_close(metric.energy(rows), (rows @ G @ rows.T).trace())
        torch.testing.assert_close(metric.damage(rows.T, torch.eye(9) * 2), 2 * (rows @ G @ rows.T).trace())
        assert metric.times(x.float()).dtype == torch.float32
        assert metric.energy(rows.float()).dtype == torch.float64


@pytest.mark.parametrize("ridge", [0.0, 1e-2])
def test_roots_of_both_forms_give_the_metric_and_its_ridge(ridge: float) -> None:
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(6, 3, generator=draw).double()
    for metric in forms():
        raised = metric.dense() + ridge * metric.trace / 6 * torch.eye(6)
        lower = metric.cholesky(ridge)
        torch.testing.assert_close(lower @ lower.T, raised)
        assert torch.equal(lower, lower.tril())
        root = metric.root(ridge)
        seen = root.transposed_times(x)
        torch.testing.assert_close(seen.T @ seen, x.T @ raised @ x)
        torch.testing.assert_close(root.solve_transposed(seen), x)


def test_singular_metrics_have_a_root() -> None:
    direction = torch.ones(6, 1, dtype=torch.float64)
    for metric in (
        OutputMetric(direction @ direction.T),
        OutputMetric(rest=torch.zeros(6).double(), factor=direction),
        OutputMetric(torch.zeros(6, 6)),
    ):
        seen = metric.root(0.0).transposed_times(torch.eye(6, dtype=torch.float64))
        torch.testing.assert_close(seen.T @ seen, metric.dense(), atol=1e-8, rtol=0)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({}, "a matrix, or a rest and a factor"),
        ({"matrix": torch.eye(3), "rest": torch.ones(3), "factor": torch.ones(3, 1)}, "one of the two"),
        ({"matrix": torch.ones(3, 2)}, r"shape \(3, 2\).*\[out, out\]"),
        ({"rest": torch.ones(3), "factor": torch.ones(2, 1)}, r"\(3,\) and \(2, 1\)"),
        ({"matrix": torch.full((2, 2), torch.nan)}, "4 NaN or infinite values out of 4"),
        ({"matrix": torch.tensor([[1.0, 2.0], [0.0, 1.0]])}, "not symmetric: entries differ by up to 2"),
        ({"matrix": torch.diag(torch.tensor([1.0, -0.5]))}, "negative diagonal entry of -0.5"),
        ({"rest": torch.tensor([-1.0]), "factor": torch.ones(1, 1)}, "negative diagonal entry of -1"),
    ],
)
def test_bad_metrics_are_one_sentence(parts: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        OutputMetric(**parts)


def test_a_metric_of_another_width_is_refused() -> None:
    with pytest.raises(BadInput, match=r"'fc': output_metric is of 3 outputs, but the layer has 6"):
        a_layer(OutputMetric(torch.eye(3)))


def test_sensitivity_is_the_damage_of_no_output() -> None:
    plain = a_layer(None)
    assert plain.metric_sensitivity is None
    outputs = plain.inputs.double() @ plain.weight.double().T
    for metric in forms():
        expected = float(metric.energy(outputs)) / len(outputs)
        assert replace(plain, output_metric=metric).metric_sensitivity == pytest.approx(expected, rel=1e-6)
    assert a_layer(OutputMetric(torch.zeros(6, 6))).metric_sensitivity == 0


def test_the_hash_changes_only_where_a_metric_is_there() -> None:
    matrix, parts = forms()
    plain = a_layer(None)
    hashes = {layer.content_hash for layer in (plain, a_layer(matrix), a_layer(parts))}
    assert len(hashes) == 3
    # of the layer above, as versions without output metrics compute it
    assert plain.content_hash == "cd2d7c8603532d408aed725e5134a99c58ec877911d86325eded9c939d5ce547"
    square = a_layer(None, outputs=4)
    moment = replace(square, moment=torch.eye(4)).content_hash
    assert replace(square, output_metric=OutputMetric(torch.eye(4))).content_hash != moment


def test_files_keep_both_forms(tmp_path: Path) -> None:
    matrix, parts = forms()
    layers = [replace(a_layer(metric), name=str(index)) for index, metric in enumerate((matrix, parts, None))]
    Layers(tuple(layers)).save(tmp_path)
    loaded = Layers.load(tmp_path)
    for before, after in zip(layers, loaded, strict=True):
        assert after.content_hash == before.content_hash
        assert (after.output_metric is None) == (before.output_metric is None)
        assert after.metric_sensitivity == before.metric_sensitivity
    assert loaded["1"].output_metric is not None
    assert loaded["1"].output_metric.matrix is None


def test_the_metric_moves_with_its_layer() -> None:
    for metric in forms():
        layer = a_layer(metric)
        with pretend_cuda():
            there = layer.to("cuda")
            copy = there.on_device()
            assert copy is there.on_device()
            assert {tensor.device.type for tensor in copy.tensors.values()} == {"cuda"}
            assert copy.content_hash == there.content_hash != layer.content_hash
            assert copy.metric_sensitivity == there.metric_sensitivity == pytest.approx(layer.metric_sensitivity)
