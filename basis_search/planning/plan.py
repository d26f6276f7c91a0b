"""One candidate per layer for a whole-model budget: minimise sum_l s_l e_l(c_l) subject to sum_l cost_l(c_l) <= budget.

s is the sensitivity of the model's loss to relative squared error at a layer's output. Exact; a layer that is called
several times in one pass costs so many times its FLOPs, latency and energy, and its parameters once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from basis_search.errors import BadInput, near_miss
from basis_search.evaluation.evaluate import Evaluation
from basis_search.evaluation.pareto import ParetoFront
from basis_search.families.protocol import spec_to_json
from basis_search.layers.layer import Layer
from basis_search.planning.knapsack import solve

SCHEMA_VERSION = 1
QUANTITIES = ("flops", "latency", "parameters", "energy")
Fronts = Mapping[str, ParetoFront | Iterable[Evaluation]] | Iterable[ParetoFront]
Groups = Sequence[str | Sequence[str]]
Unit = list[tuple[Evaluation, ...]]
"""What may stand for one layer, or for a group of layers at once: one evaluation for each of them."""


@dataclass(frozen=True)
class Plan:
    """One evaluation per layer.

    Attributes:
        budget: quantity -> largest allowed fraction of what the dense layers take together.
        choices: layer -> what replaces it.
        dense_latency: layer -> seconds of the dense layer, the median over the runs that timed it.
        layers: layer -> what the choices were fitted to, where it is at hand; applying the plan fits again.
    """

    budget: Mapping[str, float]
    choices: Mapping[str, Evaluation]
    dense_latency: Mapping[str, float]
    layers: Mapping[str, Layer] = field(default_factory=dict, compare=False, repr=False)

    @property
    def name(self) -> str:
        """Such as "flops-0.50"."""
        return "-".join(f"{quantity}-{limit:.2f}" for quantity, limit in sorted(self.budget.items()))

    @property
    def damage(self) -> float:
        """sum of sensitivity x error: the predicted rise of the model's loss."""
        return sum(_damage(e) for e in self.choices.values())

    @property
    def totals(self) -> dict[str, float]:
        """FLOPs, seconds, stored values, and joules where measured, of the chosen layers together, per forward pass."""
        return self._sums(_amount)

    @property
    def dense(self) -> dict[str, float]:
        """The same of the dense layers."""
        return self._sums(_dense_amount)

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
        return {
            "name": self.name,
            "budget": dict(self.budget),
            "choices": {layer: e.to_json() for layer, e in self.choices.items()},
            "dense_latency": dict(self.dense_latency),
            "totals": {**self.totals, "damage": self.damage},
            "dense": {**self.dense, "damage": 0.0},
            "ratios": self.ratios,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], layers: Iterable[Layer] = ()) -> Plan:
        """What `to_json` wrote. Raises BadInput if it was not ours."""
        try:
            choices = {name: Evaluation.from_json(e) for name, e in data["choices"].items()}
            budget = {str(k): float(v) for k, v in data["budget"].items()}
            latencies = {name: float(data["dense_latency"][name]) for name in choices}
        except (KeyError, TypeError, AttributeError, ValueError) as problem:
            raise BadInput(f"this is no plan of basis_search: {problem!r}") from problem
        return cls(budget, choices, latencies, {layer.name: layer for layer in layers})


def plan(fronts: Fronts, budget: Mapping[str, float], *, groups: Groups = ()) -> Plan:
    r"""The assignment of least predicted damage under a budget, exact; of those that tie, the fastest.

    Args:
        fronts: of each layer; or its whole table of evaluations, in which groups find more specs in common.
        budget: "flops", "latency", "parameters" or "energy" -> fraction of the dense layers' sum, one or several.
        groups: layers that must share a family and spec, as query, key and value may: lists of names, or patterns
            "re:<regular expression>", whose matches form one group for each value of the expression's own groups,
            such as r"re:(.*)\.(?:query|key|value)".

    Raises:
        BadInput: no front, an unknown quantity, a fraction not above 0, latencies of several devices, energy that the
            device did not tell, a group without a spec in common, or a budget that nothing meets; then the sentence
            names the nearest that can be met.
    """
    return plans(fronts, [budget], groups=groups)[0]


def plans(fronts: Fronts, budgets: Iterable[Mapping[str, float]], *, groups: Groups = ()) -> list[Plan]:
    """One plan for each budget, all from one table; as `plan`."""
    table, layers = _table(fronts)
    latencies, units = _dense_latencies(table), _units(table, groups)
    devices = {e.device for es in table.values() for e in es}
    shares = {q: _shares(units, q, latencies) for q in QUANTITIES if q != "energy"}
    damage = [np.array([sum(map(_damage, es)) for es in unit]) for unit in units]
    found = []
    for budget in budgets:
        _check(budget, devices)
        for quantity in budget:
            if quantity not in shares:
                shares[quantity] = _shares(units, quantity, latencies)
        chosen = solve(
            damage,
            [np.column_stack([shares[q][unit] for q in budget]) for unit in range(len(units))],
            np.array(list(budget.values())),
            # Of assignments as good up to rounding, the fastest: an exact scheme saves FLOPs and may yet be slow.
            [np.array(row) for row in shares["latency"]] if len(devices) == 1 and "latency" not in budget else None,
        )
        if chosen is None:
            raise BadInput(_unmet({q: shares[q] for q in budget}, budget))
        choices = {e.candidate.layer: e for unit, c in zip(units, chosen, strict=True) for e in unit[c]}
        found.append(Plan(dict(budget), {name: choices[name] for name in table}, latencies, layers))
    return found


def _check(budget: Mapping[str, float], devices: set[Any]) -> None:
    if not budget:
        raise BadInput(f"the budget is empty; name one of {', '.join(QUANTITIES)}, such as {{'flops': 0.5}}")
    for quantity, limit in budget.items():
        if quantity not in QUANTITIES:
            raise BadInput(f"there is no budget in {quantity!r}{near_miss(quantity, QUANTITIES)}")
        if not 0 < limit < float("inf"):
            raise BadInput(f"the budget of {limit} for {quantity} is not a fraction above 0, such as 0.5 of dense")
    if {"latency", "energy"} & set(budget) and len(devices) > 1:
        raise BadInput(f"the latencies were measured on {len(devices)} different devices; measure all on one")


def _table(fronts: Fronts) -> tuple[dict[str, tuple[Evaluation, ...]], dict[str, Layer]]:
    """Evaluations that did not fail, by layer, and the layers that are at hand."""
    table: dict[str, tuple[Evaluation, ...]] = {}
    layers = {}
    for front in fronts.values() if isinstance(fronts, Mapping) else fronts:
        evaluations = tuple(
            e for e in (front.evaluations if isinstance(front, ParetoFront) else front) if not e.failure
        )
        if not evaluations:
            raise BadInput("a front is empty: every candidate of that layer failed; look into its failures first")
        name = evaluations[0].candidate.layer
        if name in table:
            raise BadInput(f"two fronts are of the layer {name!r}; merge them first")
        table[name] = evaluations
        if isinstance(front, ParetoFront) and front.layer is not None:
            layers[name] = front.layer
    if not table:
        raise BadInput("no front was given; search at least one layer first")
    return table, layers


def _units(table: Mapping[str, tuple[Evaluation, ...]], groups: Groups) -> list[Unit]:
    """Layers alone, and groups of layers with the specs that all of them have."""
    units: dict[str, Unit] = {name: [(e,) for e in es] for name, es in table.items()}
    for names in grouped(table, groups):
        tables = [{(e.candidate.family, e.candidate.spec): e for e in table[name]} for name in names]
        common = [key for key in tables[0] if all(key in other for other in tables[1:])]
        if not common:
            raise BadInput(
                f"the layers {', '.join(names)} must share a spec, but none was evaluated on all of them; give plan() "
                "their whole tables instead of fronts, or search them together with search_model()"
            )
        units[names[0]] = [tuple(t[key] for t in tables) for key in common]
        for name in names[1:]:
            del units[name]
    return list(units.values())


def grouped(names: Iterable[str], groups: Groups) -> list[list[str]]:
    """Each group's layers, for groups of at least two.

    Raises:
        BadInput: a pattern that is no regular expression or matches nothing, or a name that is not there or twice.
    """
    known, found = list(names), []
    for group in groups:
        if not isinstance(group, str):
            for name in group:
                if name not in known:
                    raise BadInput(f"there is no layer {name!r} to group{near_miss(name, known)}")
            found.append(list(group))
            continue
        try:
            matches = {name: re.fullmatch(group.removeprefix("re:"), name) for name in known}
        except re.error as problem:
            raise BadInput(f"{group!r} is no regular expression: {problem}") from problem
        together: dict[tuple[str | Any, ...], list[str]] = {}
        for name, match in matches.items():
            if match is not None:
                together.setdefault(match.groups(), []).append(name)
        if not together:
            raise BadInput(f"no layer matches the group {group!r}; there are: {', '.join(known)}")
        found += together.values()
    found = [members for members in found if len(members) > 1]
    for name, times in Counter(name for members in found for name in members).items():
        if times > 1:
            raise BadInput(f"the layer {name!r} is in two groups; name it in one")
    return found


def _amount(evaluation: Evaluation, quantity: str, dense_latency: float) -> float | None:
    """Per forward pass; None where it was not measured."""
    if quantity == "latency":
        # Ratios taken within one run decide; seconds of different runs drift with the machine.
        return evaluation.latency_ratio * dense_latency * evaluation.calls
    if quantity == "energy":
        return None if evaluation.energy is None else evaluation.energy * evaluation.calls
    return evaluation.cost.flops * evaluation.calls if quantity == "flops" else evaluation.cost.parameters


def _dense_amount(evaluation: Evaluation, quantity: str, dense_latency: float) -> float | None:
    if quantity == "latency":
        return dense_latency * evaluation.calls
    if quantity == "energy":
        return None if evaluation.dense_energy is None else evaluation.dense_energy * evaluation.calls
    return evaluation.dense_cost.flops * evaluation.calls if quantity == "flops" else evaluation.dense_cost.parameters


def _dense_latencies(table: Mapping[str, tuple[Evaluation, ...]]) -> dict[str, float]:
    return {name: float(np.median([e.latency / e.latency_ratio for e in es])) for name, es in table.items()}


def _damage(evaluation: Evaluation) -> float:
    return evaluation.sensitivity * evaluation.error


def _shares(units: Sequence[Unit], quantity: str, latencies: Mapping[str, float]) -> list[list[float]]:
    """Per unit and candidate its share of what all dense layers take together."""

    def measured(value: float | None, evaluation: Evaluation) -> float:
        if value is None:
            spec = spec_to_json(evaluation.candidate.spec)
            raise BadInput(
                f"the energy of {evaluation.candidate.family} {spec} for {evaluation.candidate.layer!r} is not known: "
                f"{evaluation.device.name} did not tell it (NVIDIA GPUs do, with the extra 'energy'); give a budget in "
                "latency or flops"
            )
        return value

    def total(es: Sequence[Evaluation], amount: Callable[[Evaluation, str, float], float | None]) -> float:
        return sum(measured(amount(e, quantity, latencies[e.candidate.layer]), e) for e in es)

    dense = sum(total(unit[0], _dense_amount) for unit in units)
    return [[total(es, _amount) / dense for es in unit] for unit in units]


def _unmet(shares: Mapping[str, list[list[float]]], budget: Mapping[str, float]) -> str:
    wanted = ", ".join(f"{q} {limit:g}" for q, limit in budget.items())
    nearest = ", ".join(f"{q} {sum(map(min, rows)):.4f}" for q, rows in shares.items())
    together = "" if len(budget) == 1 else " (each alone)"
    return (
        f"nothing meets the budget of {wanted} of dense: the nearest that the fronts reach is {nearest}{together}; "
        "raise the budget or search more"
    )
