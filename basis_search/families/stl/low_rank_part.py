"""A low-rank part in addition to tiles, y = U (V x) + STL(x), for the leading directions of correlated inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from basis_search.families.protocol import Params, linear
from basis_search.families.stl.adapt import adapt_in_steps
from basis_search.families.stl.metric_equations import in_tiles
from basis_search.families.stl.normal_equations import FLOAT64_SIDE, TileProblem
from basis_search.families.stl.tile_shape import Sides, sides
from basis_search.layers.output_metric import OutputMetric
from basis_search.layers.principal_directions import best_factors

ROUNDS = 3
"""Alternations of fitting tiles to the low-rank part's residual and vice versa, per start; one for slow fits."""
ROUND_STEPS = 4
"""Limit on the steps of a solve in an output metric until the best round is known."""


def low_rank_product(params: Params, x: Tensor) -> Tensor:
    """U (V x) [..., out] for x [..., in], U = "up" [out, rank] and V = "down" [rank, in], in the dtype of x."""
    return linear(linear(x, params["down"].to(x.dtype)), params["up"].to(x.dtype))


def best_low_rank(
    weight: Tensor, covariance: Tensor, rank: int, metric: OutputMetric | None = None
) -> tuple[Tensor, Tensor]:
    """U [out, rank], V [rank, in] of the best U V for E||(weight - U V) x||^2 (Eckart and Young on weight S^(1/2))."""
    up, dual = best_factors(weight, covariance, rank, metric)
    return up[:, :rank], dual[:, :rank].T @ weight


def linear_part(E: Tensor, D: Tensor, encoded: Tensor, tile: int | Sides) -> Tensor:
    """The map [out, in] (padded) of STL from a row to itself, averaged over the rows of a tile."""
    n, k, m = sides(tile)
    e, d = E.view(-1, n, k), D.view(n, m, -1)
    own = torch.einsum("iql,lip->lqp", d, e) / n
    K, J = encoded.shape[1:]
    return torch.einsum("lqp,lKJ->JqKp", own, encoded).reshape(J * m, K * k)


def fit_tiles_and_low_rank(
    tile: int | Sides,
    rank: int,
    sweeps: int,
    bases_for: Callable[[TileProblem], tuple[Tensor, Tensor]],
    weight: Tensor,
    moments: tuple[Tensor, Tensor],
    free_bias: bool,
    metric: OutputMetric | None = None,
) -> tuple[TileProblem, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Alternately fit tiles to W - U V and U V to W minus the tiles' linear part.

    Each step lowers E||W x - U V x - STL(x)||^2 or leaves it unchanged. One start is the low-rank part alone, the other
    the tiles alone; the best of all rounds is returned, so that neither part alone has a smaller error.

    Args:
        bases_for: the initial E [r, n k] and D [n m, r] for a problem.
        moments: mean [in] and covariance [in, in] of the inputs.
        metric: in which errors are measured.

    Returns:
        (the tiles' problem, E, D, encoded weights, U, V).
    """
    out, width = weight.shape
    covariance = moments[1]
    padded = None if metric is None else in_tiles(metric, sides(tile)[2])

    def problem_for(target: Tensor) -> TileProblem:
        return TileProblem.of(tile, target, *moments, free_bias, padded)

    best: tuple[float, tuple[TileProblem, Tensor, Tensor, Tensor, Tensor, Tensor]] | None = None
    for low_rank_first in (True, False):
        if low_rank_first:
            up, down = best_low_rank(weight, covariance, rank, metric)
        else:
            up, down = weight.new_zeros(out, rank), weight.new_zeros(rank, width)
        E, D = bases_for(problem_for(weight - up @ down))
        # Tiles fitted first, without a low-rank part, need one more round.
        rounds = (ROUNDS if len(E) * width <= FLOAT64_SIDE * sides(tile)[1] else 1) + (not low_rank_first)
        for step in range(rounds):
            problem = problem_for(weight - up @ down)
            E, D, encoded, left = adapt_in_steps(problem, E, D, sweeps, ROUND_STEPS)
            error = problem.error(E, D, encoded) if metric is None else left * problem.scale
            if best is None or error < best[0]:
                best = error, (problem, E, D, encoded, up, down)
            if step + 1 < rounds:
                tiles = linear_part(E, D, encoded, tile)[:out, :width]
                up, down = best_low_rank(weight - tiles, covariance, rank, metric)
    assert best is not None
    if metric is None:
        return best[1]
    problem, E, D, _, up, down = best[1]
    return problem, E, D, problem.solve(E, D)[0], up, down
