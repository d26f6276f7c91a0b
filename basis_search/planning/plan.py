"""One candidate per layer for a whole-model budget: minimise sum_l d_l(c_l) subject to sum_l cost_l(c_l) <= budget.

d is the damage to the model's output by the layer's output metric, `Evaluation.damage`; without metrics s e, s being
the sensitivity of the model's loss to relative squared error at the layer's output. Exact. A layer that is called
several times in one pass counts its FLOPs, latency and energy as often, its parameters once, and its damage once: both
metric and sensitivity are of all its calls together.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from basis_search.errors import BadInput
from basis_search.evaluation.candidate import Evaluation
from basis_search.layers.layer import Layer
from basis_search.planning.amounts import Unit, amount_of, damage_of, dense_amount_of, dense_latencies, shares_of
from basis_search.planning.budget import DEFAULT_MAX_LATENCY, QUANTITIES, OnlySlowPlans, check, too_slow, unmet
from basis_search.planning.groups import Groups
from basis_search.planning.knapsack import ROUNDING, Floats, solve
from basis_search.planning.table import Fronts, PlanTable, evaluations_of, units_of

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """One evaluation per layer.

    Attributes:
        budget: quantity -> largest allowed fraction of what the dense layers take together.
        choices: layer -> what replaces it.
        dense_latency: layer -> seconds of the dense layer, the median over the runs that timed it.
        layers: layer -> what the choices were fitted to, where it is at hand; needed to apply the plan.
        table: what the plan was chosen from, where it is at hand.
    """

    budget: Mapping[str, float]
    choices: Mapping[str, Evaluation]
    dense_latency: Mapping[str, float]
    layers: Mapping[str, Layer] = field(default_factory=dict, compare=False, repr=False)
    table: PlanTable | None = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        """Such as "flops-0.50"."""
        return "-".join(f"{quantity}-{limit:.2f}" for quantity, limit in sorted(self.budget.items()))

    @property
    def damage(self) -> float:
        """The predicted squared change of the model's output per example; without output metrics the predicted rise of
        its loss, the sum of sensitivity x error."""
        return sum(damage_of(e) for e in self.choices.values())

    @property
    def totals(self) -> dict[str, float]:
        """FLOPs, seconds, stored values, and joules where measured, of the chosen layers together, per forward pass."""
        return self._sums(amount_of)

    @property
    def dense(self) -> dict[str, float]:
        """Totals of the dense layers."""
        return self._sums(dense_amount_of)

    def _sums(self, amount: Callable[[Evaluation, str, float], float | None]) -> dict[str, float]:
        sums = {}
        for quantity in QUANTITIES:
            amounts = [amount(e, quantity, self.dense_latency[n]) for n, e in self.choices.items()]
            known = [a for a in amounts if a is not None]
            if len(known) == len(amounts):
                sums[quantity] = sum(known)
        return sums

    @property
    def ratios(self) -> dict[str, float]:
        """Chosen over dense."""
        dense = self.dense
        return {quantity: total / dense[quantity] for quantity, total in self.totals.items() if quantity in dense}

    def to_json(self) -> dict[str, Any]:
        """For plans.json; a limit of inf is null there."""
        return {
            "name": self.name,
            "budget": {q: None if limit == math.inf else limit for q, limit in self.budget.items()},
            "choices": {layer: e.to_json() for layer, e in self.choices.items()},
            "dense_latency": dict(self.dense_latency),
            "totals": {**self.totals, "damage": self.damage},
            "dense": {**self.dense, "damage": 0.0},
            "ratios": self.ratios,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], layers: Iterable[Layer] = ()) -> Plan:
        """The plan that `to_json` wrote. Raises BadInput for anything else."""
        try:
            choices = {name: Evaluation.from_json(e) for name, e in data["choices"].items()}
            budget = {str(k): math.inf if v is None else float(v) for k, v in data["budget"].items()}
            latencies = {name: float(data["dense_latency"][name]) for name in choices}
            limit = data.get("latency_limit")
            limited = (
                None if limit is None else [float(limit[key]) for key in ("limit", "damage_without", "latency_without")]
            )
        except (KeyError, TypeError, AttributeError, ValueError) as problem:
            raise BadInput(f"this is no plan of basis_search: {problem!r}") from problem
        known = {layer.name: layer for layer in layers}
        if limited is None:
            return Plan(budget, choices, latencies, known)
        most, damage, latency = limited
        return LatencyLimitedPlan(
            budget, choices, latencies, known, max_latency=most, damage_unlimited=damage, latency_unlimited=latency
        )


@dataclass(frozen=True, kw_only=True)
class LatencyLimitedPlan(Plan):
    """A plan whose budget names no latency, and that the largest allowed latency makes worse.

    Attributes:
        max_latency: the largest allowed latency as a ratio to dense.
        damage_unlimited: the least damage under the same budget at any latency.
        latency_unlimited: the latency of that plan as a ratio to dense, above `max_latency`.
    """

    max_latency: float = DEFAULT_MAX_LATENCY
    damage_unlimited: float
    latency_unlimited: float

    def to_json(self) -> dict[str, Any]:
        """As of every plan, and the limit with the damage and latency of the plan without it."""
        limit = {
            "limit": self.max_latency,
            "damage_without": self.damage_unlimited,
            "latency_without": self.latency_unlimited,
        }
        return super().to_json() | {"latency_limit": limit}


def latency_cost(plan: Plan) -> str:
    """The damage that the limit of latency adds to the plan, in one sentence; "" where it adds none."""
    if not isinstance(plan, LatencyLimitedPlan):
        return ""
    return (
        f"{plan.name}: keeping latency <= {plan.max_latency:g} costs damage {plan.damage:.3g} instead of "
        f"{plan.damage_unlimited:.3g}, which would take latency {plan.latency_unlimited:.2f}"
    )


def plan(fronts: Fronts, budget: Mapping[str, float], *, groups: Groups = ()) -> Plan:
    r"""The assignment of least predicted damage under a budget, exact; of those that tie, the fastest.

    A budget that names no latency is limited to latency <= 1 as well, since fewer FLOPs may take more time than dense.
    Where that costs damage, the plan is a `LatencyLimitedPlan`, which says how much. A "latency" in the budget replaces
    the default; inf allows any. Evaluations of several devices have no common latency, so that none is limited.

    Args:
        fronts: of each layer; or its whole table of evaluations, in which groups find more specs in common.
        budget: "flops", "latency", "parameters" or "energy" -> fraction of the dense layers' sum, one or several.
        groups: layers that must share a family and spec, as query, key and value may: lists of names, or patterns
            "re:<regular expression>", whose matches form one group for each value of the expression's own groups,
            such as r"re:(.*)\.(?:query|key|value)".

    Raises:
        BadInput: no front, an unknown quantity, a fraction not above 0, latencies of several devices, energy that the
            device does not report, a group without a spec in common, or a budget that nothing meets; then the sentence
            names the nearest that can be met, or the latency that meets it.
    """
    return plans(fronts, [budget], groups=groups)[0]


def plans(fronts: Fronts, budgets: Iterable[Mapping[str, float]], *, groups: Groups = ()) -> list[Plan]:
    """One plan for each budget, all from one table; as `plan`."""
    return chosen_from(*_table(fronts, groups, DEFAULT_MAX_LATENCY), budgets)


def plan_within(fronts: Fronts, budget: Mapping[str, float], max_latency: float, groups: Groups = ()) -> Plan:
    """As `plan`, with `max_latency` in the place of 1 where the budget names no latency; inf allows any."""
    return chosen_from(*_table(fronts, groups, max_latency), [budget])[0]


def _table(fronts: Fronts, groups: Groups, max_latency: float) -> tuple[PlanTable, dict[str, Layer], dict[str, float]]:
    evaluations, layers = evaluations_of(fronts)
    return PlanTable(evaluations, groups, max_latency), layers, dense_latencies(evaluations)


def chosen_from(
    table: PlanTable,
    layers: Mapping[str, Layer],
    latencies: Mapping[str, float],
    budgets: Iterable[Mapping[str, float]],
) -> list[Plan]:
    """One plan for each budget, by the latencies of the dense layers; raises BadInput as `plan`."""
    units = units_of(table.evaluations, table.groups)
    devices = len({e.device for es in table.evaluations.values() for e in es})
    problem = AssignmentProblem(units, latencies, one_device=devices == 1)
    found: list[Plan] = []
    for budget in budgets:
        check(budget)
        if {"latency", "energy"} & set(budget) and devices > 1:
            raise BadInput(f"the latencies were measured on {devices} different devices; measure all on one")
        chosen, unlimited = problem.solve(budget, table.max_latency)
        choices = {e.candidate.layer: e for unit, c in zip(units, chosen, strict=True) for e in unit[c]}
        content = dict(budget), {name: choices[name] for name in table.evaluations}, latencies, layers, table
        if unlimited is None:
            found.append(Plan(*content))
        else:
            found.append(
                LatencyLimitedPlan(
                    *content,
                    max_latency=table.max_latency,
                    damage_unlimited=problem.damage(unlimited),
                    latency_unlimited=problem.latency(unlimited),
                )
            )
    return found


class AssignmentProblem:
    """The assignment problem of one table; limits differ from budget to budget."""

    def __init__(self, units: Sequence[Unit], dense_latency: Mapping[str, float], one_device: bool):
        self._shares = functools.cache(
            lambda quantity: [np.array(row) for row in shares_of(units, quantity, dense_latency)]
        )
        self._damage = [np.array([sum(map(damage_of, es)) for es in unit]) for unit in units]
        self._one_device = one_device

    def solve(self, budget: Mapping[str, float], max_latency: float) -> tuple[list[int], list[int] | None]:
        """One candidate per unit; and the assignment at any latency, if `max_latency` costs damage.

        `max_latency` limits budgets without latency.
        """
        limits = {quantity: limit for quantity, limit in budget.items() if limit < math.inf}
        fastest = self._shares("latency") if self._one_device and "latency" not in limits else None
        chosen = self._least(limits, fastest)
        if chosen is None:
            raise BadInput(unmet(limits, {q: float(sum(row.min() for row in self._shares(q))) for q in limits}))
        most = max_latency * (1 + ROUNDING)
        if "latency" in budget or not self._one_device or self.latency(chosen) <= most:
            return chosen, None
        limited = self._least(limits | {"latency": max_latency}, fastest)
        if limited is None:
            quickest = solve(self._shares("latency"), *self._limited(limits))
            raise OnlySlowPlans(too_slow(limits, max_latency, self.latency(quickest or chosen)))
        return limited, chosen if self.damage(chosen) < self.damage(limited) else None

    def damage(self, chosen: Sequence[int]) -> float:
        return float(sum(row[c] for row, c in zip(self._damage, chosen, strict=True)))

    def latency(self, chosen: Sequence[int]) -> float:
        """Latency of an assignment over dense."""
        return float(sum(row[c] for row, c in zip(self._shares("latency"), chosen, strict=True)))

    def _least(self, limits: Mapping[str, float], further: list[Floats] | None) -> list[int] | None:
        """The assignment of least damage; of those as good up to rounding, an exact scheme among them, the fastest."""
        return solve(self._damage, *self._limited(limits), further)

    def _limited(self, limits: Mapping[str, float]) -> tuple[list[Floats], Floats]:
        """Per unit [candidates, quantities], and the limits [quantities]."""
        columns = [self._shares(quantity) for quantity in limits]
        return [np.column_stack(rows) for rows in zip(*columns, strict=True)], np.array(list(limits.values()))
