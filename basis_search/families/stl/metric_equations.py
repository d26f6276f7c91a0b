"""Encoded weights in an output metric G: min over w of E tr((Y - Y') G (Y - Y')^T), by conjugate gradients.

With V_ii' [in, out] the map from row i' of a tile to row i, V_ii'[Kp, Jq] = sum_l D[iq, l] E[l, i'p] w_lKJ, independent
rows of mean m and covariance C, and A_ii' = V_ii' - delta_ii' W^T, the loss is

    sum over i, i' of tr(G A_ii'^T C A_ii')  +  sum over i of a_i^T G a_i,   a_i = sum over i' of A_ii'^T m,

where a bias takes up the mean of a_i over the rows. G couples all outputs, so the normal matrix is not formed: a
product with it takes n^2 products C V G. Wide layers replace G by its diagonal and its leading directions, since
C V F F^T takes far fewer operations.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from basis_search.families.stl.linear_solvers import coupled_conjugate_gradients
from basis_search.layers.output_metric import FACTOR_COLUMNS, OutputMetric
from basis_search.layers.principal_directions import principal_directions

if TYPE_CHECKING:
    from basis_search.families.stl.normal_equations import TileProblem

MATRIX_OPERATIONS = {"cpu": 5e10}
"""Operations of a step's products with the matrix G up to which it is used, and not a diagonal and a factor; by device
type, on others `MATRIX_OPERATIONS_ELSEWHERE`. A step of 384 -> 1536 takes 3e10."""
MATRIX_OPERATIONS_ELSEWHERE = 1e13
FLOAT64_OPERATIONS = 1e9
"""Operations of a step up to which it is computed in float64."""
MOST_STEPS, LEAST_GAIN, READ_EVERY = 32, 1e-2, 4
"""Limit on steps, the relative decrease of the error per step below which they end, and how often it is read."""


def in_tiles(metric: OutputMetric, tile: int) -> OutputMetric:
    """The metric padded to whole tiles of outputs; the padded outputs are cut off, so errors there count nothing."""
    more = -metric.width % tile
    if metric.matrix is not None:
        return OutputMetric(F.pad(metric.matrix, (0, more, 0, more)))
    assert metric.rest is not None
    assert metric.factor is not None
    return OutputMetric(rest=F.pad(metric.rest, (0, more)), factor=F.pad(metric.factor, (0, 0, 0, more)))


_stepped: weakref.WeakKeyDictionary[OutputMetric, OutputMetric] = weakref.WeakKeyDictionary()


def stepped_metric(metric: OutputMetric, rows: int, inputs: int) -> OutputMetric:
    """The metric that steps multiply by: itself, or for a matrix too large its diagonal and leading directions.

    Args:
        rows: rows n of a tile; a step takes n^2 products of [inputs, out] and G.
    """
    matrix, out = metric.matrix, metric.width
    limit = MATRIX_OPERATIONS.get(metric.device.type, MATRIX_OPERATIONS_ELSEWHERE)
    if matrix is None or 2 * rows**2 * inputs * out**2 <= limit or out <= 2 * FACTOR_COLUMNS:
        return metric
    if metric not in _stepped:
        axes = principal_directions(torch.eye(out, dtype=matrix.dtype, device=matrix.device), matrix, FACTOR_COLUMNS)
        axes = axes[:, :FACTOR_COLUMNS]
        factor = axes * ((axes.T @ matrix) * axes.T).sum(1).clamp_min(0).sqrt()
        rest = (matrix.diagonal() - factor.square().sum(1)).clamp_min(0)
        _stepped[metric] = OutputMetric(rest=rest, factor=factor)
    return _stepped[metric]


def of_outputs(metric: OutputMetric, outputs: Tensor) -> OutputMetric:
    """The metric of some outputs, where the others have no error."""
    if metric.matrix is not None:
        return OutputMetric(metric.matrix[outputs][:, outputs])
    assert metric.rest is not None
    assert metric.factor is not None
    return OutputMetric(rest=metric.rest[outputs], factor=metric.factor[outputs])


def improve(
    problem: TileProblem,
    bases: tuple[Tensor, Tensor],
    start: Tensor,
    unweighted: Callable[[Tensor], Tensor],
    steps: int,
) -> tuple[Tensor, float]:
    """Encoded weights of smaller loss than `start` [r, K, J], or `start` itself, and their loss over `scale`.

    Args:
        bases: E and D.
        unweighted: R [r K, J] -> approximately N^-1 R for the unweighted normal matrix N; over the mean diagonal of G
            in a tile it is the preconditioner. What G couples across tiles adds nothing to it (measured).
        steps: limit on conjugate-gradient steps.
    """
    assert problem.metric is not None
    metric = stepped_metric(problem.metric, problem.sides[0], len(problem.mean))
    stepped = problem if metric is problem.metric else replace(problem, metric=metric)
    equations = MetricEquations(stepped, *bases)
    found, before, after = equations.descend(start, unweighted, steps)
    if stepped is not problem:  # the choice between them is by the metric itself
        exact = MetricEquations(problem, *bases)
        before, after = exact.error(start), exact.error(found)
    return (found.double(), after) if after < before else (start, before)


class MetricEquations:
    """The normal equations of the encoded weights w [r, K, J] in the problem's metric, for bases E and D."""

    def __init__(self, problem: TileProblem, E: Tensor, D: Tensor):
        assert problem.metric is not None
        n, k, m = problem.sides
        inputs, out = len(problem.mean), len(problem.weight)
        wide = out if problem.metric.matrix is not None else 2 * FACTOR_COLUMNS
        operations = 2 * n * n * inputs * out * (inputs + wide)
        self.work = torch.float64 if operations <= FLOAT64_OPERATIONS else torch.float32
        self.metric = problem.metric.to(dtype=self.work)
        self.shape = len(E), inputs // k, out // m
        self.sides, self.free_bias = problem.sides, problem.free_bias
        self.covariance, self.mean = problem.covariance.to(self.work), problem.mean.to(self.work)
        rows, columns = E.view(-1, n, k), D.view(n, m, -1)  # [l, i, p], [i, q, l]
        # For each row i of the outputs [q i' p, l]: all of V from the encoded weights.
        self.maps = torch.einsum("iql,ljp->iqjpl", columns, rows).reshape(n, m * n * k, -1).to(self.work)
        self.encoded_mean = torch.einsum("lip,Kp->lK", rows, problem.mean.view(-1, k)).to(self.work)
        self.columns = columns.to(self.work)
        self.right = problem.right(E, D).to(self.work)
        self.scale = problem.scale

    def multiply(self, w: Tensor) -> Tensor:
        """The normal matrix times w [r, K, J]."""
        (n, k, m), (r, K, J) = self.sides, self.shape
        means = torch.einsum("iql,lJ->iJq", self.columns, torch.einsum("lK,lKJ->lJ", self.encoded_mean, w))
        if self.free_bias:
            means = means - means.mean(dim=0)
        out = torch.zeros(r, K * J, dtype=self.work, device=w.device)
        for i in range(n):
            V = (self.maps[i] @ w.reshape(r, K * J)).view(m, n, k, K, J).permute(1, 3, 2, 4, 0)
            seen = self.covariance @ V.reshape(n, K * k, J * m)
            seen += self.mean[:, None] * means[i].reshape(J * m)
            felt = self._times_metric(seen.view(n * K * k, J * m)).view(n, K, k, J, m)
            out.addmm_(self.maps[i].T, felt.permute(4, 0, 2, 1, 3).reshape(m * n * k, K * J))
        return out.view(r, K, J)

    def _times_metric(self, rows: Tensor) -> Tensor:
        if self.metric.matrix is not None:
            return rows @ self.metric.matrix
        assert self.metric.rest is not None
        assert self.metric.factor is not None
        return torch.addmm(rows * self.metric.rest, rows @ self.metric.factor, self.metric.factor.T)

    def error(self, w: Tensor) -> float:
        """The loss of any encoded weights over `scale`."""
        w = w.to(self.work)
        return self._left(w, self.right - self.multiply(w))

    def _left(self, w: Tensor, residual: Tensor) -> float:
        explained = float((w * (self.right + residual)).sum(dtype=torch.float64))
        return 1 - explained / self.scale if self.scale > 0 else 0.0

    def descend(self, start: Tensor, unweighted: Callable[[Tensor], Tensor], steps: int) -> tuple[Tensor, float, float]:
        """As `improve`: what the steps found, and the loss before and after them."""
        w = start.to(self.work)
        residual = self.right - self.multiply(w)
        before = self._left(w, residual)
        gains = self.metric.diagonal().view(self.shape[2], -1).mean(1)  # of each tile J
        inverse = torch.where(gains > 0, 1 / gains, 0).to(self.work)

        def precondition(residual: Tensor) -> Tensor:
            return (unweighted(residual.flatten(0, 1)).to(self.work) * inverse).view_as(residual)

        found, residual = coupled_conjugate_gradients(
            self.multiply, precondition, w, residual, before * self.scale, (steps, LEAST_GAIN, READ_EVERY)
        )
        return found, before, self._left(found, residual)
