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
    kept = [_undominated(np.column_stack([d, a])) for d, a in zip(damage, amounts, strict=True)]
    scale = max(float(d[k].max()) for d, k in zip(damage, kept, strict=True)) or 1.0

    def hair(unit: int) -> Floats:
        """Breaks ties between equally good assignments in favour of the cheaper one."""
        return 1e-9 * np.asarray((amounts[unit] / limits).sum(axis=1))

    taken = _least([d / scale + hair(u) for u, d in enumerate(damage)], amounts, limits, kept)
    total = 0.0 if taken is None else sum(float(d[c]) for d, c in zip(damage, taken, strict=True))
    if 0 < total < scale:
        # The solver calls 1e-6 nothing: what is far below the largest damage is solved again at its own scale, among
        # the candidates that can be in a better assignment.
        slack = total * (1 + TIE) - sum(float(d.min()) for d in damage)
        near = [k[d[k] - d.min() <= slack] for d, k in zip(damage, kept, strict=True)]
        taken = _least([d / total + hair(u) for u, d in enumerate(damage)], amounts, limits, near) or taken
    if taken is None or further is None:
        return taken
    bound = sum(float(d[c]) for d, c in zip(damage, taken, strict=True)) / scale + TIE
    # What alone takes the damage beyond its bound is in no assignment that ties.
    slack = bound - sum(float(d.min()) for d in damage) / scale
    tied = [
        k[d[k] / scale - d.min() / scale <= slack]
        for d, a, f in zip(damage, amounts, further, strict=True)
        for k in [_undominated(np.column_stack([d, a, f]))]
    ]
    both = [np.column_stack([a, d / scale]) for d, a in zip(damage, amounts, strict=True)]
    return _least(further, both, np.append(limits, bound), tied) or taken


def _least(
    costs: Sequence[Floats], amounts: Sequence[Floats], limits: Floats, kept: Sequence[NDArray[np.intp]]
) -> list[int] | None:
    """The assignment of least cost among the kept candidates; None if none keeps to the limits."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    c = np.concatenate([values[k] for values, k in zip(costs, kept, strict=True)])
    a = np.concatenate([values[k] for values, k in zip(amounts, kept, strict=True)])
    one_each = np.zeros((len(kept), len(c)))
    starts = np.cumsum([0, *(len(k) for k in kept)])
    for unit, (low, high) in enumerate(itertools.pairwise(starts)):
        one_each[unit, low:high] = 1
    found = milp(
        c=c,
        integrality=np.ones(len(c), dtype=int),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(a.T, -np.inf, limits)],
        # Some versions of HiGHS print from within presolve, and no option silences them.
        options={"mip_rel_gap": 0.0, "presolve": False},
    )
    if found.x is None:
        return None
    return [
        int(k[np.argmax(found.x[low:high])]) for k, (low, high) in zip(kept, itertools.pairwise(starts), strict=True)
    ]


def _undominated(costs: Floats) -> NDArray[np.intp]:
    """Indices of rows [candidates, costs] that no other row beats or equals; of equal ones the first."""
    beaten = (costs[:, None] <= costs[None]).all(axis=2)  # [by whom, who]
    equal = beaten & beaten.T
    beaten &= ~equal | np.triu(equal, 1)
    return np.flatnonzero(~beaten.any(axis=0))
