"""Strassen-Tile fits in an output metric: least squares there, never worse than the unweighted fit, equal for G = I."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from basis_search.families import stl
from basis_search.families.stl import metric_equations, normal_equations
from basis_search.families.stl.bases import bases
from basis_search.families.stl.metric_equations import MetricEquations, in_tiles, stepped_metric
from basis_search.families.stl.normal_equations import TileProblem
from basis_search.families.stl.reference import reference
from basis_search.layers.layer import Layer
from basis_search.layers.output_metric import OutputMetric
from basis_search.layers.ridge import fitting_metric


def a_metric(out: int, directions: int, seed: int = 2) -> OutputMetric:
    draw = torch.Generator().manual_seed(seed)
    factor = torch.randn(out, directions, generator=draw, dtype=torch.float64)
    factor *= torch.logspace(0.5, -1, directions, dtype=torch.float64)
    return OutputMetric(factor @ factor.T + 1e-2 * torch.eye(out, dtype=torch.float64))


def a_layer(k: int = 32, m: int = 24, *, bias: bool = True, metric: OutputMetric | None = None) -> Layer:
    """Correlated inputs with a mean."""
    draw = torch.Generator().manual_seed(k + m)
    mix = torch.randn(k, k, generator=draw, dtype=torch.float64) * torch.logspace(0, -1.5, k, dtype=torch.float64)
    x = torch.randn(2400, k, generator=draw, dtype=torch.float64) @ mix.T + 0.3
    weight = torch.randn(m, k, generator=draw, dtype=torch.float64)
    b = torch.randn(m, generator=draw, dtype=torch.float64) if bias else None
    return Layer("layer", weight, b, x[:2000], x[2000:], 8, torch.float64, output_metric=metric)


def weighted_error(spec: stl.Spec, layer: Layer, params: dict[str, Tensor], metric: OutputMetric) -> float:
    x = layer.held_out
    exact = x @ layer.weight.T + (0 if layer.bias is None else layer.bias)
    return float(metric.energy(reference(spec, params, x) - exact) / metric.energy(exact))


@pytest.mark.parametrize("thin", [False, True])
@pytest.mark.parametrize("free_bias", [True, False])
@pytest.mark.parametrize("m", [4, 5])
def test_solve_is_the_least_squares_solution_in_the_metric(
    m: int, free_bias: bool, thin: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared with dense least squares over all pairs of samples with exactly these moments."""
    monkeypatch.setattr(metric_equations, "LEAST_GAIN", 1e-12)
    spec, k = stl.Spec(2, 5), 6
    kept, layer, metric = bases(spec), a_layer(6, m), a_metric(m, 3)
    if thin:
        draw = torch.Generator().manual_seed(1)
        factor = torch.randn(m, 2, generator=draw, dtype=torch.float64)
        metric = OutputMetric(rest=torch.linspace(0.1, 1, m, dtype=torch.float64), factor=factor)
    points = layer.inputs[:12]
    mean = points.mean(0)
    covariance = (points - mean).T @ (points - mean) / len(points)
    problem = TileProblem.of(2, layer.weight, mean, covariance, free_bias, in_tiles(metric, 2))
    encoded, left = problem.solve(kept.encode, kept.decode, 400)
    shift = problem.shift(kept.encode, kept.decode, encoded)[:m]
    x = torch.stack([torch.stack([a, b]) for a, b in itertools.product(points, points)]).reshape(-1, k)
    root = metric.cholesky(0.0)
    params = {"encode": kept.encode, "decode": kept.decode, "out_features": torch.tensor(m)}
    columns = []
    for unit in torch.eye(encoded.numel(), dtype=torch.float64):
        columns.append((reference(spec, {**params, "weight": unit.view_as(encoded)}, x) @ root).flatten())
    if free_bias:
        columns += [(row.expand(len(x), m) @ root).flatten() for row in torch.eye(m, dtype=torch.float64)]
    A = torch.stack(columns, dim=1)
    y = x @ layer.weight.T @ root
    best = (A @ torch.linalg.lstsq(A, y.flatten(), driver="gelsd").solution - y.flatten()).square().sum()
    solution = encoded.flatten() if not free_bias else torch.cat([encoded.flatten(), shift])
    got = (A @ solution - y.flatten()).square().sum()
    assert float(got / best) == pytest.approx(1, abs=1e-6)
    scale = (y - y.mean(0) if free_bias else y).square().sum()
    assert left == pytest.approx(float(got / scale), rel=1e-6)
    assert problem.error(kept.encode, kept.decode, encoded) == pytest.approx(left * problem.scale, rel=1e-6)


def test_a_layer_with_the_structure_is_recovered() -> None:
    """Products with which Strassen's scheme, nested once, is exact for the planted weights."""
    kept = bases(stl.Spec(4, 49, "strassen2"))
    E, D = kept.encode[:40], kept.decode[:, :40]
    seen = kept.encode_weight[40:]
    null = torch.linalg.svd(seen)[2][int(torch.linalg.matrix_rank(seen)) :]
    tiles = (torch.randn(6, 5, len(null), dtype=torch.float64) @ null).view(6, 5, 4, 4)
    weight = tiles.permute(0, 2, 1, 3).reshape(24, 20).T
    layer = a_layer(24, 20)
    mean = layer.inputs.mean(0)
    covariance = layer.second_moment - torch.outer(mean, mean)
    problem = TileProblem.of(4, weight, mean, covariance, True, a_metric(20, 4))
    encoded, left = problem.solve(E, D)
    assert abs(left) < 1e-10
    params = {"encode": E, "decode": D, "weight": encoded, "out_features": torch.tensor(20)}
    params["bias"] = problem.shift(E, D, encoded)
    x = layer.held_out
    torch.testing.assert_close(reference(stl.Spec(4, 40), params, x), x @ weight.T, rtol=0, atol=1e-4)


SPECS = [
    stl.Spec(4, 24),
    stl.Spec(4, 16, "ternary"),
    stl.Spec("2x4x4", 16),
    stl.Spec(4, 24, sweeps=2),
    stl.Spec(4, 24, waist=4),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_weighted_error_is_below_the_unweighted_fit_s(spec: stl.Spec) -> None:
    metric = a_metric(24, 5)
    layer = a_layer(metric=metric)
    plain = stl.fit(spec, replace(layer, output_metric=None))
    unweighted = weighted_error(spec, layer, plain, metric)
    assert weighted_error(spec, layer, stl.fit(spec, layer), metric) < 0.9 * unweighted


@pytest.mark.parametrize("bias", [True, False])
def test_a_wide_layer_takes_a_diagonal_and_directions(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_equations, "MATRIX_OPERATIONS", {"cpu": 1.0})
    monkeypatch.setattr(metric_equations, "FACTOR_COLUMNS", 6)
    monkeypatch.setattr(metric_equations, "FLOAT64_OPERATIONS", 1.0)
    metric = a_metric(24, 8)
    layer = a_layer(metric=metric, bias=bias)
    fitting = fitting_metric(layer)
    assert fitting is not None
    assert in_tiles(fitting, 5).width == 25
    thin = stepped_metric(fitting, 4, 32)
    assert thin.matrix is None
    torch.testing.assert_close(thin.diagonal(), fitting.diagonal())
    assert float((thin.dense() - fitting.dense()).norm()) < 0.02 * float(fitting.dense().norm())
    spec = stl.Spec(4, 24)
    unweighted = weighted_error(spec, layer, stl.fit(spec, replace(layer, output_metric=None)), metric)
    assert weighted_error(spec, layer, stl.fit(spec, layer), metric) < 0.9 * unweighted


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_metric_that_weighs_nothing_changes_no_fit(spec: stl.Spec) -> None:
    layer = a_layer()
    expected = stl.fit(spec, layer)
    for matrix in (torch.zeros(24, 24), 3 * torch.eye(24)):
        for name, tensor in stl.fit(spec, replace(layer, output_metric=OutputMetric(matrix))).items():
            torch.testing.assert_close(tensor, expected[name])


def test_a_layer_whose_normal_matrix_is_not_formed_gains_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normal_equations, "LARGEST_SIDE", 100)
    monkeypatch.setattr(normal_equations, "BLOCK_SIDE", 96)
    metric, spec = a_metric(24, 5), stl.Spec(4, 24)
    layer = a_layer(metric=metric)
    unweighted = weighted_error(spec, layer, stl.fit(spec, replace(layer, output_metric=None)), metric)
    assert weighted_error(spec, layer, stl.fit(spec, layer), metric) < 0.8 * unweighted


def test_the_equations_of_the_identity_are_the_unweighted_ones() -> None:
    """Their matrix, right-hand side and error, without the shortcut for such metrics."""
    layer, kept = a_layer(), bases(stl.Spec(4, 24))
    mean = layer.inputs.mean(0)
    covariance = layer.second_moment - torch.outer(mean, mean)
    for free_bias in (True, False):
        plain = TileProblem.of(4, layer.weight, mean, covariance, free_bias)
        same = replace(plain, metric=OutputMetric(torch.eye(24, dtype=torch.float64)))
        equations = MetricEquations(same, kept.encode, kept.decode)
        w = torch.randn(24, 8, 6, dtype=torch.float64)
        normal = plain._normal(kept.encode, kept.decode, slice(0, 8), torch.float64)
        torch.testing.assert_close(equations.multiply(w), (normal @ w.view(192, 6)).view_as(w))
        torch.testing.assert_close(equations.right, plain.right(kept.encode, kept.decode))
        encoded, left = plain.solve(kept.encode, kept.decode)
        assert same.solve(kept.encode, kept.decode)[1] == pytest.approx(left, rel=1e-6)
        assert equations.error(encoded) == pytest.approx(left, rel=1e-6)
