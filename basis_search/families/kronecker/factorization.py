"""Approximation of a matrix by a chain of Kronecker-sparse factors, with bounds on the optimum.

max_s E_s <= optimum <= error, where E_s is the exact two-factor error of splitting the chain once, at s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from basis_search.errors import BadInput
from basis_search.families.kronecker import blocks
from basis_search.families.kronecker.alternating_least_squares import descend
from basis_search.families.kronecker.hierarchy import hierarchical, lift, opening_order, tail
from basis_search.families.kronecker.metric_blocks import whiten
from basis_search.families.kronecker.output_error import OutputError
from basis_search.families.kronecker.patterns import KroneckerChain
from basis_search.layers.output_metric import OutputMetric


@dataclass(frozen=True, eq=False)
class Factorization:
    """A ~ K_1 K_2 ... K_L.

    Attributes:
        chain: the patterns.
        factors: stored values [a, b, c, d] of each, leftmost first, in the matrix's dtype.
        error: relative Frobenius error of the product (of G^{1/2} (A - K) S^{1/2} where a second
            moment S or a metric G was given).
        lower_bound: on the relative Frobenius error of any chain of these patterns; 0 with S or G.
        upper_bound: sqrt(sum_s E_s^2), which hierarchical factorisation attains; infinite with S or G.
    """

    chain: KroneckerChain
    factors: list[Tensor]
    error: float
    lower_bound: float
    upper_bound: float

    def to_dense(self) -> Tensor:
        """The product, [M, N]."""
        return blocks.dense(blocks.fuse_all(self.factors))


def _checked(matrix: Tensor, chain: KroneckerChain) -> Tensor:
    chain.require_chainable()
    if matrix.ndim != 2 or tuple(matrix.shape) != chain.shape:
        raise BadInput(
            f"the matrix has shape {tuple(matrix.shape)}, but the chain {chain} is {chain.shape[0]} x {chain.shape[1]}"
        )
    if not bool(torch.isfinite(matrix).all()):
        bad = int((~torch.isfinite(matrix)).sum())
        raise BadInput(f"the matrix holds {bad} NaN or infinite values out of {matrix.numel()}; repair it first")
    return matrix.detach().to(torch.complex128 if matrix.is_complex() else torch.float64)


def factorize(
    matrix: Tensor,
    chain: KroneckerChain | str,
    order: str | Sequence[int] = "left",
    orthonormalize: bool = True,
    polish: bool = True,
    second_moment: Tensor | None = None,
    *,
    sweeps: int = 100,
    tolerance: float = 1e-5,
    output_metric: OutputMetric | None = None,
) -> Factorization:
    """Factor a real or complex matrix [M, N] into a chainable chain of shape [M, N].

    Block SVDs boundary by boundary (`order`: "left", "right", "balanced" or a permutation of 1..L-1), with redundant
    pairs merged before and split again afterwards, then alternating least squares (`polish`: at most `sweeps` passes,
    until one lowers the squared error by less than `tolerance` of it). With `second_moment` S [N, N], the error of the
    outputs, ||(A - K) S^{1/2}||, is minimised; with `output_metric` G [M, M], of full rank,
    ||G^{1/2} (A - K) S^{1/2}||. Computes in double precision.

    Raises:
        BadInput: NaN or infinite values, shapes that disagree, a chain that is not chainable, an unknown order.
    """
    if isinstance(chain, str):
        chain = KroneckerChain.parse(chain)
    target = _checked(matrix, chain)
    moment = None if second_moment is None else _checked_moment(second_moment, target)
    opening_order(order, len(chain))
    short, groups = chain.without_redundancy()
    if len(short) != len(chain):
        order = order if isinstance(order, str) else "left"
    # Columns scaled by the inputs' root mean square: the part of S that the last factor's pattern preserves. Rows are
    # multiplied by the root of the blocks of G that the first factor's pattern preserves.
    scale = None if moment is None else _column_scale(moment)
    metric = None if output_metric is None else _checked_metric(output_metric, target)
    objective = OutputError(target, moment, metric)
    product = short.product
    start, back = (target, None) if metric is None else whiten(target, short.patterns[0], metric)
    stored = blocks.gather(start if scale is None else start * scale, product)
    factors = hierarchical(stored, short, order, orthonormalize)
    if back is not None:
        factors[0] = blocks.fuse(back, factors[0])
    if scale is not None:
        factors[-1] = _scale_columns(factors[-1], 1 / scale)
    weighed = moment is not None or metric is not None
    if polish and (len(short) > 2 or weighed):
        factors = descend(objective, factors, sweeps=sweeps, tolerance=tolerance)
    lower, upper = (0.0, math.inf) if weighed else certificate(target, short)
    squares = objective.of(factors) / objective.total.clamp_min(torch.finfo(torch.float64).tiny)
    if len(short) != len(chain):
        factors = lift(factors, chain, groups)
    error = math.sqrt(float(squares))
    return Factorization(chain, [w.to(matrix.dtype) for w in factors], error, lower, upper)


def certificate(target: Tensor, chain: KroneckerChain) -> tuple[float, float]:
    """(max_s E_s, sqrt(sum_s E_s^2)) relative to ||target||, in the Frobenius norm; target is [M, N]."""
    lower, upper = bounds(target, chain).tolist()
    return lower, upper


def bounds(target: Tensor, chain: KroneckerChain) -> Tensor:
    """`certificate` as a tensor [2], which the host has not read."""
    product = chain.product
    stored = blocks.gather(target, product)
    total = torch.linalg.vector_norm(target).square()
    outside = torch.zeros_like(total)
    if product.density < 1:
        outside = torch.linalg.vector_norm(target - blocks.dense(stored)).square()
    tails = [tail(stored, chain[:s].product, chain[s:].product) for s in range(1, len(chain))]
    errors = torch.stack([outside, *(outside + t for t in tails)])
    both = torch.stack([errors.max(), outside + (errors - outside).sum()])
    return torch.where(total > 0, (both / torch.where(total > 0, total, 1)).sqrt(), 0)


def _checked_moment(moment: Tensor, target: Tensor) -> Tensor:
    columns = target.shape[1]
    if tuple(moment.shape) != (columns, columns):
        raise BadInput(f"the second moment has shape {tuple(moment.shape)}, but [{columns}, {columns}] is needed")
    if not bool(torch.isfinite(moment).all()):
        raise BadInput("the second moment holds NaN or infinite values; drop those samples")
    return moment.detach().to(target.dtype)


def _checked_metric(metric: OutputMetric, target: Tensor) -> OutputMetric:
    if metric.width != len(target):
        raise BadInput(f"the output metric is of {metric.width} outputs, but the matrix has {len(target)} rows")
    if target.is_complex():
        raise BadInput("an output metric is real and weighs real matrices; factor a complex matrix without one")
    return metric.to(target.device, target.dtype)


def _column_scale(moment: Tensor) -> Tensor:
    power = moment.diagonal().real
    floor = 1e-8 * power.mean()
    return torch.maximum(power, torch.where(floor > 0, floor, 1.0)).sqrt()


def _scale_columns(w: Tensor, scale: Tensor) -> Tensor:
    """K diag(scale) for a stored factor."""
    a, _, c, d = w.shape
    return w * scale.reshape(a, 1, c, d)
