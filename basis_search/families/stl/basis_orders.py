"""Six bases from one: tr(A B Z) = tr(B Z A) = tr(Z^T B^T A^T), so the three factors may change places.

All six leave the same error on white inputs, and very different ones on correlated inputs once the encoded weights are
free: which of the factors encodes X decides what of a row's leading directions the products can carry.
"""

from __future__ import annotations

from torch import Tensor

from basis_search.families.stl.normal_equations import Problem
from basis_search.families.stl.tile_shape import Sides, sides
from basis_search.schemes.algebra.factor_orders import factor_permutations

SAMPLE = 16
"""Tiles of inputs and of outputs, evenly spaced, on which relatives are compared."""

Factors = tuple[Tensor, Tensor, Tensor]


def relatives(U: Tensor, V: Tensor, W: Tensor, tile: int | Sides) -> list[Factors]:
    """Those of the six orders that are of the tile's own format, the given one first: all six of a square tile."""
    return [factors for form, factors in factor_permutations(U, V, W, sides(tile)) if form == sides(tile)]


def best(problem: Problem, E: Tensor, E_W: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
    """(E [r, n k], D [n m, r]) of the relative that leaves least error on a part of the layer; the first if equal."""
    part = _part(problem)
    orders = [(U, W.T.contiguous()) for U, _, W in relatives(E, E_W, D.T, problem.tile)]
    left = [part.solve(*order)[1] for order in orders]
    return orders[min(range(len(orders)), key=lambda i: (left[i] > min(left) + 1e-9, i))]


def _part(problem: Problem) -> Problem:
    """The layer restricted to SAMPLE tiles of inputs and of outputs."""
    _, k, m = problem.sides
    inputs, outputs = (_spaced(len(side) // t, t) for side, t in ((problem.mean, k), (problem.weight, m)))
    weight, covariance = problem.weight[outputs][:, inputs], problem.covariance[inputs][:, inputs]
    return Problem(problem.tile, weight, problem.mean[inputs], covariance, problem.free_bias)


def _spaced(tiles: int, t: int) -> list[int]:
    """Positions of evenly spaced whole tiles."""
    count = min(tiles, SAMPLE)
    return [tile * tiles // count * t + p for tile in range(count) for p in range(t)]
