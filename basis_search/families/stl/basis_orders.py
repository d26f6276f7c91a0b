"""Six orders of the factors of a scheme: tr(A B Z) = tr(B Z A) = tr(Z^T B^T A^T), so the factors can be exchanged.

All six have the same error on white inputs, but very different errors on correlated inputs with fitted encoded weights:
the factor that encodes X determines which leading directions of a row the products represent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from basis_search.families.stl.metric_equations import of_outputs
from basis_search.families.stl.normal_equations import TileProblem
from basis_search.families.stl.tile_shape import Sides, sides
from basis_search.schemes.algebra.factor_orders import factor_permutations

SAMPLED_TILES = 16
"""Number of evenly spaced tiles of inputs and of outputs on which orders are compared."""
METRIC_STEPS = 4
"""Conjugate-gradient steps per order in an output metric."""

Factors = tuple[Tensor, Tensor, Tensor]


def reorderings(U: Tensor, V: Tensor, W: Tensor, tile: int | Sides) -> list[Factors]:
    """The orders whose format is the tile's, the given one first: all six for square tiles."""
    return [factors for form, factors in factor_permutations(U, V, W, sides(tile)) if form == sides(tile)]


def best_order(problem: TileProblem, E: Tensor, E_W: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
    """(E [r, n k], D [n m, r]) of the order with the least error on a part of the layer, the first on ties."""
    part = _subproblem(problem)
    orders = [(U, W.T.contiguous()) for U, _, W in reorderings(E, E_W, D.T, problem.tile)]
    errors = [part.solve(*order, METRIC_STEPS)[1] for order in orders]
    return orders[min(range(len(orders)), key=lambda i: (errors[i] > min(errors) + 1e-9, i))]


def _subproblem(problem: TileProblem) -> TileProblem:
    """The layer restricted to SAMPLED_TILES tiles of inputs and of outputs."""
    _, k, m = problem.sides
    inputs, outputs = (_spaced(side, t) for side, t in ((problem.mean, k), (problem.weight, m)))
    weight, covariance = problem.weight[outputs][:, inputs], problem.covariance[inputs][:, inputs]
    metric = None if problem.metric is None else of_outputs(problem.metric, outputs)
    return TileProblem(problem.tile, weight, problem.mean[inputs], covariance, problem.free_bias, metric)


def _spaced(side: Tensor, t: int) -> Tensor:
    """Positions of evenly spaced whole tiles of `side` [tiles t, ...]."""
    tiles = len(side) // t
    count = min(tiles, SAMPLED_TILES)
    first = torch.arange(count, device=side.device) * tiles // count * t
    return (first[:, None] + torch.arange(t, device=side.device)).flatten()
