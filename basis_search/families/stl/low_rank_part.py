"""A low-rank part beside the tiles, y = U (V x) + STL(x): what correlated inputs carry goes through the waist."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from basis_search.families.protocol import Params, linear
from basis_search.families.stl.adapt import adapt
from basis_search.families.stl.normal_equations import FLOAT64_SIDE, Problem
from basis_search.families.stl.tile_shape import Sides, sides

ROUNDS = 3
"""Fits of the tiles to what the waist leaves and of the waist to what the tiles leave, of each start; one where a fit
takes long."""


def through(params: Params, x: Tensor) -> Tensor:
    """x [..., in] -> U (V x) [..., out], in the dtype of `x`, of "up" [out, rank] and "down" [rank, in]."""
    return linear(linear(x, params["down"].to(x.dtype)), params["up"].to(x.dtype))


def leading(weight: Tensor, covariance: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """U [out, rank], V [rank, in] of the best U V for E||(weight - U V) x||^2 (Eckart and Young on weight S^(1/2))."""
    energy, axes = torch.linalg.eigh(covariance)
    root = axes * energy.clamp_min(1e-12 * float(energy[-1].clamp_min(1e-300))).sqrt()
    up = torch.linalg.svd(weight @ root, full_matrices=False).U[:, :rank]
    return up, up.T @ weight


def linear_part(E: Tensor, D: Tensor, encoded: Tensor, tile: int | Sides) -> Tensor:
    """What STL does to a row beside rows of mean zero: the mean over the tile's rows, [out, in] padded."""
    n, k, m = sides(tile)
    e, d = E.view(-1, n, k), D.view(n, m, -1)
    own = torch.einsum("iql,lip->lqp", d, e) / n
    K, J = encoded.shape[1:]
    return torch.einsum("lqp,lKJ->JqKp", own, encoded).reshape(J * m, K * k)


def fit_both(
    tile: int | Sides,
    rank: int,
    sweeps: int,
    bases_for: Callable[[Problem], tuple[Tensor, Tensor]],
    weight: Tensor,
    mean: Tensor,
    covariance: Tensor,
    free_bias: bool,
) -> tuple[Problem, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(the tiles' problem, E, D, encoded, U, V): in turn, tiles to W - U V and waist to W less their linear part.

    `bases_for` gives E [r, n k] and D [n m, r] to begin with. Each step lowers E||W x - U V x - STL(x)||^2 or leaves
    it. One start is the waist alone, the other the tiles alone; the best of all rounds is kept, so that neither part
    alone does better.
    """
    out, width = weight.shape
    best: tuple[float, tuple[Problem, Tensor, Tensor, Tensor, Tensor, Tensor]] | None = None
    for waist_first in (True, False):
        up, down = leading(weight, covariance, rank)
        if not waist_first:
            up, down = torch.zeros_like(up), torch.zeros_like(down)
        E, D = bases_for(Problem.of(tile, weight - up @ down, mean, covariance, free_bias))
        # Tiles that come first have to make room for the waist once more.
        rounds = (ROUNDS if len(E) * width <= FLOAT64_SIDE * sides(tile)[1] else 1) + (not waist_first)
        for step in range(rounds):
            problem = Problem.of(tile, weight - up @ down, mean, covariance, free_bias)
            E, D, encoded = adapt(problem, E, D, sweeps)
            left = problem.left(E, D, encoded)
            if best is None or left < best[0]:
                best = left, (problem, E, D, encoded, up, down)
            if step + 1 < rounds:
                own = linear_part(E, D, encoded, tile)[:out, :width]
                up, down = leading(weight - own, covariance, rank)
    assert best is not None
    return best[1]
