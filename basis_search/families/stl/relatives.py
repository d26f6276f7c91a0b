"""Six bases from one: tr(A B Z) = tr(B Z A) = tr(Z^T B^T A^T), so the three factors may change places.

All six leave the same error on white inputs, and very different ones on correlated inputs once the encoded weights are
free: which of the factors encodes X decides what of a row's leading directions the products can carry.
"""

from __future__ import annotations

from torch import Tensor

from basis_search.families.stl.normal import Problem

SAMPLE = 16
"""Tiles of inputs and of outputs, evenly spaced, on which relatives are compared."""

Factors = tuple[Tensor, Tensor, Tensor]


def relatives(U: Tensor, V: Tensor, W: Tensor, tile: int) -> list[Factors]:
    """Factors [r, t*t] of vec(A B) ~ W^T ((U vec A) * (V vec B)) in their six orders, the given one first."""

    def turned(factor: Tensor) -> Tensor:
        return factor.view(-1, tile, tile).mT.reshape(-1, tile * tile)

    found: list[Factors] = []
    for factors in ((U, V, W), (W, turned(V), U)):
        for _ in range(3):
            found.append(factors)
            factors = (factors[1], turned(factors[2]), turned(factors[0]))
    return found


def best(problem: Problem, E: Tensor, E_W: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
    """(E [r, t*t], D [t*t, r]) of the relative that leaves least error on a part of the layer; the first if equal."""
    part = _part(problem)
    orders = [(U, W.T.contiguous()) for U, _, W in relatives(E, E_W, D.T, problem.tile)]
    left = [part.solve(*order)[1] for order in orders]
    return orders[min(range(len(orders)), key=lambda i: (left[i] > min(left) + 1e-9, i))]


def _part(problem: Problem) -> Problem:
    """The layer restricted to SAMPLE tiles of inputs and of outputs."""
    t = problem.tile
    inputs, outputs = (_spaced(len(side) // t, t) for side in (problem.mean, problem.weight))
    weight, covariance = problem.weight[outputs][:, inputs], problem.covariance[inputs][:, inputs]
    return Problem(t, weight, problem.mean[inputs], covariance, problem.free_bias)


def _spaced(tiles: int, t: int) -> list[int]:
    """Positions of evenly spaced whole tiles."""
    count = min(tiles, SAMPLE)
    return [tile * tiles // count * t + p for tile in range(count) for p in range(t)]
