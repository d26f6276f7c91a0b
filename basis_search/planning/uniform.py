"""Uniform assignments of a plan's table: one family and spec everywhere, or dense but for one family.

A plan has the least predicted damage of all assignments within its budget, these among them. Whether it also does best
by the user's metric is for `basis_search.replacement.validate` to measure.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from basis_search.errors import BadInput
from basis_search.families.protocol import spec_to_json
from basis_search.planning.knapsack import ROUNDING
from basis_search.planning.plan import Plan, chosen_from
from basis_search.planning.table import PlanTable

DENSE = "dense"


@dataclass(frozen=True)
class UniformAssignment:
    """One that the budget of a plan allows.

    Attributes:
        label: such as "int8 (reduce_range true) everywhere" or "dense but for lowrank".
        plan: its choices.
    """

    label: str
    plan: Plan


def uniform_assignments(plan: Plan) -> list[UniformAssignment]:
    """Those of the plan's table that its budget allows, the least predicted damage first; not the plan itself.

    Of each family the spec of least damage everywhere, and the best assignment with dense layers; none for a plan whose
    table is not at hand.
    """
    if plan.table is None:
        return []
    families = dict.fromkeys(e.candidate.family for es in plan.table.evaluations.values() for e in es)
    found: list[UniformAssignment] = []
    for family in families:
        found += _everywhere(plan, plan.table, family)
        if family != DENSE:
            found += _with_dense(plan, plan.table, family)
    known, kept = {candidates(plan)}, []
    for assignment in sorted(found, key=lambda a: a.plan.damage):
        if (key := candidates(assignment.plan)) not in known:
            known.add(key)
            kept.append(assignment)
    return kept


def candidates(plan: Plan) -> frozenset[Any]:
    """What identifies an assignment: layers with families and specs."""
    return frozenset((name, e.candidate.family, e.candidate.spec) for name, e in plan.choices.items())


def _everywhere(plan: Plan, table: PlanTable, family: str) -> Iterable[UniformAssignment]:
    tables = [{e.candidate.spec: e for e in es if e.candidate.family == family} for es in table.evaluations.values()]
    specs = [spec for spec in tables[0] if all(spec in other for other in tables)]
    found = []
    for spec in specs:
        choices = {name: known[spec] for name, known in zip(table.evaluations, tables, strict=True)}
        same = Plan(plan.budget, choices, plan.dense_latency, plan.layers)
        if _within(same, table.max_latency):
            found.append(UniformAssignment(f"{family}{_values(spec)} everywhere", same))
    return [min(found, key=lambda a: a.plan.damage)] if found else []


def _with_dense(plan: Plan, table: PlanTable, family: str) -> Iterable[UniformAssignment]:
    some = {
        name: tuple(e for e in es if e.candidate.family in (family, DENSE)) for name, es in table.evaluations.items()
    }
    if not all(some.values()):
        return []
    restricted = dataclasses.replace(table, evaluations=some)
    try:
        (best,) = chosen_from(restricted, plan.layers, plan.dense_latency, [plan.budget])
    except BadInput:  # the family and dense layers alone do not meet the budget, or a group has no spec in common
        return []
    return [UniformAssignment(f"dense but for {family}", best)]


def _within(plan: Plan, max_latency: float) -> bool:
    """Whether the budget allows it; `max_latency` limits budgets without latency, of one device."""
    limits = dict(plan.budget)
    if len({e.device for e in plan.choices.values()}) == 1:
        limits.setdefault("latency", max_latency)
    ratios = plan.ratios
    return all(
        limit == math.inf or (q in ratios and ratios[q] <= limit * (1 + ROUNDING)) for q, limit in limits.items()
    )


def _values(spec: Any) -> str:
    values = spec_to_json(spec)
    return f" ({', '.join(f'{key} {value}' for key, value in values.items())})" if values else ""
