"""Solve the multiple-choice knapsack exactly: one candidate per unit, least damage, all amounts within their limits.

minimise sum_u d_u(c_u) subject to sum_u a_uq(c_u) <= limit_q. With any multipliers m_q >= 0 each candidate has a
reduced cost r = d + m a - min(d + m a) >= 0 in its unit, and an assignment has the damage
bound + sum_u r + m (limit - sum_u a): a candidate whose r alone exceeds the best known is in no better one. The
linear relaxation's multipliers leave about two candidates a unit (Pisinger, A minimal algorithm for the multiple-choice
knapsack problem, 1995) for HiGHS to decide.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
TIE = 1e-7
"""Differences below this fraction of the largest damage within the limits count as rounding."""
ROUNDING = 1e-12
"""A sum of amounts may exceed its limit by this fraction."""
RESOLVED = 1e-4
"""A least damage below this fraction of the largest nears the solver's tolerance: larger damages are left out first."""
MAX_COEFFICIENT = 1e6
"""The largest coefficient in a row whose limit is scaled to 1."""
COST_SCALE = 1e3
"""Factor on the objective, so that the solver's absolute tolerance resolves small differences."""


def solve(
    damage: Sequence[Floats], amounts: Sequence[Floats], limits: Floats, further: Sequence[Floats] | None = None
) -> list[int] | None:
    """The index of one candidate for each unit; None if nothing keeps to the limits.

    Args:
        damage: per unit [candidates].
        amounts: per unit [candidates, quantities].
        limits: [quantities].
        further: per unit [candidates], the cost that decides between assignments of equal damage.
    """
    room = limits + ROUNDING * np.abs(limits) - sum(a.min(axis=0) for a in amounts)
    table = _Table.of(damage, amounts, damage if further is None else further)
    table = narrowed = table.only((table.amounts <= room).all(axis=1))
    if len(np.unique(table.unit)) < len(damage):
        return None
    while True:
        multipliers = _multipliers(narrowed, room)
        found = None if multipliers is None else _least(narrowed, room, multipliers)
        if multipliers is None or found is None:
            return None
        least = float(narrowed.damage[found].sum())
        if least == 0 or least >= RESOLVED * float(narrowed.damage.max()):
            break
        narrowed = narrowed.only(narrowed.damage <= least)
    if further is not None:
        ceiling = least + TIE * float((table.damage + np.array([d.min() for d in damage])[table.unit]).max())
        reduced, bound = table.reduced(multipliers, room)
        near = table.only(reduced <= ceiling - bound)
        tied = _search(near, room, multipliers, ceiling, near.further)
        if tied is not None:
            return [int(c) for c in near.index[tied]]
    return [int(c) for c in narrowed.index[found]]


@dataclass(frozen=True)
class _Table:
    """Candidates of all units, sorted by unit.

    Attributes:
        unit, index: [candidates], the unit, and the position in it.
        damage: [candidates], minus the least of the unit.
        amounts: [candidates, quantities], minus the least of the unit.
        further: [candidates]
    """

    unit: NDArray[np.intp]
    index: NDArray[np.intp]
    damage: Floats
    amounts: Floats
    further: Floats

    @classmethod
    def of(cls, damage: Sequence[Floats], amounts: Sequence[Floats], further: Sequence[Floats]) -> _Table:
        """The candidates that no other of their unit dominates or equals."""
        kept = [_undominated(np.column_stack(costs)) for costs in zip(damage, amounts, further, strict=True)]
        return cls(
            np.repeat(np.arange(len(kept)), [len(k) for k in kept]),
            np.concatenate(kept),
            np.concatenate([d[k] - d.min() for d, k in zip(damage, kept, strict=True)]),
            np.concatenate([a[k] - a.min(axis=0) for a, k in zip(amounts, kept, strict=True)]),
            np.concatenate([f[k] for f, k in zip(further, kept, strict=True)]),
        )

    def only(self, kept: NDArray[np.bool_]) -> _Table:
        return _Table(self.unit[kept], self.index[kept], self.damage[kept], self.amounts[kept], self.further[kept])

    def one_each(self) -> Floats:
        """[units, candidates], 1 where the candidate belongs to the unit."""
        return np.asarray(np.arange(self.unit[-1] + 1)[:, None] == self.unit, float)

    def reduced(self, multipliers: Floats, room: Floats) -> tuple[Floats, float]:
        """Reduced costs [candidates], and the lower bound on the damage of every assignment."""
        costs = self.damage + self.amounts @ multipliers
        least = np.minimum.reduceat(costs, np.flatnonzero(np.diff(self.unit, prepend=-1)))
        return costs - least[self.unit], float(least.sum() - multipliers @ room)


def _undominated(costs: Floats) -> NDArray[np.intp]:
    """Indices of rows [candidates, costs] that no other row dominates; the first of equal rows."""
    beaten = (costs[:, None] <= costs[None]).all(axis=2)  # [dominating, dominated]
    equal = beaten & beaten.T
    beaten &= ~equal | np.triu(equal, 1)
    return np.flatnonzero(~beaten.any(axis=0))


def _multipliers(table: _Table, room: Floats) -> Floats | None:
    """Multipliers [quantities] of the linear relaxation; None if it has no solution."""
    from scipy.optimize import linprog

    scale, one_each = float(table.damage.max()) or 1.0, table.one_each()
    found = linprog(
        table.damage / scale,
        table.amounts.T / np.where(room > 0, room, 1)[:, None],
        np.where(room > 0, 1, 0),
        one_each,
        np.ones(len(one_each)),
        bounds=(0, 1),
        method="highs-ds",
    )
    if found.status == 2:
        return None
    if found.x is None:
        raise RuntimeError(f"the linear relaxation of a plan was not solved: {found.message}")
    return np.maximum(0, -found.ineqlin.marginals) * scale / np.where(room > 0, room, 1)


def _least(table: _Table, room: Floats, multipliers: Floats) -> NDArray[np.intp] | None:
    """The candidates of the assignment of least damage; None if none keeps to the limits."""
    reduced, bound = table.reduced(multipliers, room)
    width = float(np.sort(reduced)[min(2 * int(table.unit[-1] + 1), len(reduced)) - 1])
    width = max(width, TIE * float(table.damage.max())) or 1.0
    while True:
        near = np.flatnonzero(reduced <= width)
        found = _search(table.only(reduced <= width), room, multipliers, bound + width)
        if found is None and len(near) == len(reduced):
            return None
        above = np.inf if found is None else float(table.damage[near[found]].sum()) - bound
        if found is not None and (above <= width or len(near) == len(reduced)):
            return near[found]
        width = min(above, 8 * width)


def _search(
    table: _Table, room: Floats, multipliers: Floats, ceiling: float, further: Floats | None = None
) -> NDArray[np.intp] | None:
    """The candidates of the assignment of least damage or, below a ceiling of damage, of least further cost.

    The solver's tolerances are absolute: it sees sum_u r + m (limit - sum_u a) in units of ceiling - bound.
    """
    reduced, bound = table.reduced(multipliers, room)
    quantities, width = len(room), (ceiling - bound) or 1.0
    per = 1 / np.where(room > 0, room, 1)
    weights = np.clip(multipliers / width, per, MAX_COEFFICIENT * per)
    left = np.eye(quantities)  # slack variables, after the columns of the candidates
    above = np.concatenate([reduced / width, multipliers / width / weights])
    rows = [
        (np.column_stack([table.one_each(), np.zeros((table.unit[-1] + 1, quantities))]), 1.0, 1.0),
        (np.column_stack([(table.amounts * weights).T, left]), weights * room, weights * room),
    ]
    costs = above
    if further is not None:
        rows.append((above[None], -np.inf, 1.0))
        costs = np.concatenate([(further - further.min()) / (np.ptp(further) or 1.0), np.zeros(quantities)])
    while True:
        taken = _milp(COST_SCALE * costs, len(reduced), rows)
        if taken is None:
            return None
        kept = bool((table.amounts[taken].sum(axis=0) <= room).all())
        if kept and (further is None or float(table.damage[taken].sum()) <= ceiling * (1 + ROUNDING)):
            return taken
        # Feasible only within the solver's tolerance: excluded by a constraint.
        rows.append((np.isin(np.arange(len(costs)), taken)[None].astype(float), -np.inf, len(taken) - 1.0))


def _milp(costs: Floats, binary: int, rows: Sequence[tuple[Floats, Any, Any]]) -> NDArray[np.intp] | None:
    """Which of the leading binary variables are 1; the others are >= 0. None if the rows have no solution."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    whole = np.arange(len(costs)) < binary
    for presolve in (True, False):  # tolerances that break one do not break the other
        with _silence():
            found = milp(
                costs,
                integrality=whole.astype(int),
                bounds=Bounds(0, np.where(whole, 1, np.inf)),
                constraints=[LinearConstraint(*row) for row in rows],
                options={"mip_rel_gap": 0.0, "presolve": presolve},
            )
        if found.status == 2:
            return None
        if found.x is not None:
            return np.flatnonzero(found.x[:binary] > 0.5)
    raise RuntimeError(f"a plan was not solved: {found.message}")


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Silences standard output: HiGHS has a printf that no option turns off."""
    flush = ctypes.CDLL(None).fflush
    sys.stdout.flush()
    flush(None)
    kept = os.dup(1)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 1)
        yield
        flush(None)
    finally:
        os.dup2(kept, 1)
        os.close(kept)
