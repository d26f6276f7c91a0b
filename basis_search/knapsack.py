"""The multiple-choice knapsack: one candidate of each unit, least damage, all amounts within their limits, exactly.

minimise sum_u d_u(c_u) subject to sum_u a_uq(c_u) <= limit_q, by scipy's mixed-integer solver (HiGHS); of assignments
that tie, the one of least further cost.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
TIE = 1e-7
"""Of the largest damage of a candidate: less is rounding."""


def solve(
    damage: Sequence[Floats], amounts: Sequence[Floats], limits: Floats, further: Sequence[Floats] | None = None
) -> list[int] | None:
    """The index of one candidate for each unit; None if nothing keeps to the limits.

    Args:
        damage: per unit [candidates].
        amounts: per unit [candidates, quantities].
        limits: [quantities].
        further: per unit [candidates], decides between assignments of equal damage; the amounts do if None.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    kept = [
        _undominated(np.column_stack([d, a, *([] if further is None else [further[unit]])]))
        for unit, (d, a) in enumerate(zip(damage, amounts, strict=True))
    ]
    d = np.concatenate([values[k] for values, k in zip(damage, kept, strict=True)])
    a = np.concatenate([values[k] for values, k in zip(amounts, kept, strict=True)])
    scale = d.max() if d.max() > 0 else 1.0
    one_each = np.zeros((len(kept), len(d)))
    starts = np.cumsum([0, *(len(k) for k in kept)])
    for unit, (low, high) in enumerate(itertools.pairwise(starts)):
        one_each[unit, low:high] = 1
    within = [LinearConstraint(one_each, 1, 1), LinearConstraint(a.T, -np.inf, limits)]

    def least(costs: Floats, *more: LinearConstraint) -> Floats | None:
        found = milp(
            c=costs,
            integrality=np.ones(len(d), dtype=int),
            bounds=Bounds(0, 1),
            constraints=[*within, *more],
            # Some versions of HiGHS print from within presolve, and no option silences them.
            options={"mip_rel_gap": 0.0, "presolve": False},
        )
        return None if found.x is None else np.asarray(found.x > 0.5, dtype=np.float64)

    # A hair of the amounts breaks ties between equally good assignments in favour of the cheaper one.
    taken = least(d / scale + 1e-9 * (a / limits).sum(axis=1))
    if taken is None:
        return None
    if further is not None:
        bound = float(d / scale @ taken) + TIE
        cost = np.concatenate([values[k] for values, k in zip(further, kept, strict=True)])
        better = least(cost, LinearConstraint(d[None] / scale, -np.inf, bound))
        taken = taken if better is None else better
    return [int(k[np.argmax(taken[low:high])]) for k, (low, high) in zip(kept, itertools.pairwise(starts), strict=True)]


def _undominated(costs: Floats) -> NDArray[np.intp]:
    """Indices of rows [candidates, costs] that no other row beats or equals; of equal ones the first."""
    beaten = (costs[:, None] <= costs[None]).all(axis=2)  # [by whom, who]
    equal = beaten & beaten.T
    beaten &= ~equal | np.triu(equal, 1)
    return np.flatnonzero(~beaten.any(axis=0))
