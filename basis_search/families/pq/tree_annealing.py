"""Simulated annealing over the trees of all codebooks: one tree is regrown from few columns, then all are improved.

The result is accepted if the error rises by less than h E, with E exponentially distributed and h cooling to zero
(Kirkpatrick, Gelatt and Vecchi, 1983).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from basis_search.families.pq.nested_tables import nested_ridge, summed
from basis_search.families.pq.spec import BUCKETS
from basis_search.families.pq.splits import Intervals, Tree, grow, improve, leaf_means

INITIAL_HEAT = 1e-3
"""Initial scale h of the accepted relative rise of the error."""
GROWTH_COLUMNS, IMPROVEMENT_COLUMNS = 16, 64
"""Random columns that a regrown tree may split on, and random columns tried to improve each tree."""
MOST_REGROW_COLUMNS = 64
"""Most columns tried by `regrow` for each tree: those that explain most of the residual."""


@dataclass(frozen=True)
class State:
    """Trees, their tables [C, 16, q] and their squared error."""

    trees: list[Tree]
    table: Tensor
    error: float


def state_of(trees: list[Tree], y: Tensor, ridge: float) -> State:
    """All tables fitted together to y [n, q]."""
    codes = torch.stack([tree.codes for tree in trees], 1)
    table = nested_ridge(codes, y, ridge, trees=True).view(len(trees), BUCKETS, -1).float()
    return State(trees, table, float((y - summed(table, codes)).square().sum()))


def regrow(intervals: Intervals, x: Tensor, y: Tensor, state: State, ridge: float) -> State:
    """Each tree in turn grown anew on the residual of the others on y [n, q]."""
    trees, rest = list(state.trees), _rest(y, state)
    for c, tree in enumerate(trees):
        residual = rest + state.table[c][tree.codes.long()]
        trees[c] = grow(intervals, residual, _promising(x, residual), ridge)
        rest = residual - leaf_means(trees[c].codes, residual, ridge)[trees[c].codes.long()]
    return state_of(trees, y, ridge)


def sweep(
    intervals: Intervals,
    y: Tensor,
    state: State,
    ridge: float,
    columns: Tensor,
    regrown: tuple[int, Tree] | None = None,
) -> State:
    """Each tree improved once, beginning with the one regrown, if any; columns [k] to try besides its own."""
    trees, rest = list(state.trees), _rest(y, state)
    first = 0 if regrown is None else regrown[0]
    for c in (first, *(c for c in range(len(trees)) if c != first)):
        residual = rest + state.table[c][trees[c].codes.long()]
        start = trees[c] if regrown is None or c != first else regrown[1]
        trees[c] = improve(intervals, residual, start, torch.cat([columns, start.columns]), ridge)
        rest = residual - leaf_means(trees[c].codes, residual, ridge)[trees[c].codes.long()]
    return state_of(trees, y, ridge)


def descend(intervals: Intervals, y: Tensor, state: State, ridge: float, kicks: int, seed: int) -> State:
    """The best state of `kicks` steps of annealing; one value is read at each, to accept it or not.

    Random numbers are drawn on the CPU before the first step: the same on every device.
    """
    width = len(intervals.bins)
    every = torch.arange(width, device=y.device)
    state = best = sweep(intervals, y, state, ridge, every)
    generator, drawn = torch.Generator().manual_seed(seed), []
    for _ in range(kicks):
        c = int(torch.randint(len(state.trees), (1,), generator=generator))
        shuffled = torch.randperm(width, generator=generator)
        drawn.append((c, shuffled, float(torch.empty(1).exponential_(generator=generator))))
    orders = torch.stack([shuffled for _, shuffled, _ in drawn]).to(y.device) if drawn else every[None]
    for kick, (c, _, energy) in enumerate(drawn):
        residual = _rest(y, state) + state.table[c][state.trees[c].codes.long()]
        shuffled = orders[kick]
        tree = grow(intervals, residual, shuffled[:GROWTH_COLUMNS], ridge)
        found = sweep(intervals, y, state, ridge, shuffled[-IMPROVEMENT_COLUMNS:], (c, tree))
        heat = INITIAL_HEAT * (1 - kick / kicks) * energy
        if found.error < state.error * (1 + heat):
            state = found
        if found.error < best.error:
            best = found
    found = sweep(intervals, y, best, ridge, every)
    return found if found.error < best.error else best


def _rest(y: Tensor, state: State) -> Tensor:
    return y - summed(state.table, torch.stack([tree.codes for tree in state.trees], 1))


def _promising(x: Tensor, residual: Tensor) -> Tensor:
    """The columns that explain most of the residual linearly: |cov(x_j, r)|^2 / var(x_j)."""
    if x.shape[1] <= MOST_REGROW_COLUMNS:
        return torch.arange(x.shape[1], device=x.device)
    centred = x - x.mean(0)
    variance = centred.square().sum(0)
    explained = (centred.T @ residual).square().sum(1) / variance.clamp(min=torch.finfo(x.dtype).tiny)
    return torch.where(variance > 0, explained, 0.0).topk(MOST_REGROW_COLUMNS).indices
