"""One candidate per layer for a whole-model budget: minimise sum_l s_l e_l(c_l) subject to sum_l cost_l(c_l) <= budget.

s is the measured sensitivity of the model's loss to relative squared error at a layer's output. Exact, by scipy's
mixed-integer solver (HiGHS).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from basis_search.errors import BadInput
from basis_search.evaluate import Evaluation
from basis_search.family import near_miss
from basis_search.layer import Layer
from basis_search.pareto import ParetoFront

SCHEMA_VERSION = 1
QUANTITIES = ("flops", "latency", "parameters")
TIE = 1e-7  # of the largest damage of a candidate: less is rounding


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
        """FLOPs, seconds and stored values of the chosen layers together, per forward pass."""
        return {q: sum(_amount(e, q, self.dense_latency[n]) for n, e in self.choices.items()) for q in QUANTITIES}

    @property
    def dense(self) -> dict[str, float]:
        """The same of the dense layers."""
        return {q: sum(_dense_amount(e, q, self.dense_latency[n]) for n, e in self.choices.items()) for q in QUANTITIES}

    @property
    def ratios(self) -> dict[str, float]:
        """Chosen over dense."""
        dense = self.dense
        return {quantity: total / dense[quantity] for quantity, total in self.totals.items()}

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


def plan(fronts: Mapping[str, ParetoFront] | Iterable[ParetoFront], budget: Mapping[str, float]) -> Plan:
    """The assignment of least predicted damage under a budget, exact; of those that tie, the fastest.

    Args:
        fronts: of each layer.
        budget: "flops", "latency" or "parameters" -> fraction of the dense layers' sum, one or several.

    Raises:
        BadInput: no front, an unknown quantity, a fraction not above 0, latencies of several devices, or a budget
            that nothing meets; then the sentence names the nearest that can be met.
    """
    by_layer = _by_layer(fronts)
    if not budget:
        raise BadInput(f"the budget is empty; name one of {', '.join(QUANTITIES)}, such as {{'flops': 0.5}}")
    for quantity, limit in budget.items():
        if quantity not in QUANTITIES:
            raise BadInput(f"there is no budget in {quantity!r}{near_miss(quantity, QUANTITIES)}")
        if not 0 < limit < float("inf"):
            raise BadInput(f"the budget of {limit} for {quantity} is not a fraction above 0, such as 0.5 of dense")
    devices = {e.device for es in by_layer.values() for e in es}
    if "latency" in budget and len(devices) > 1:
        raise BadInput(f"the latencies were measured on {len(devices)} different devices; measure all on one")
    chosen = _solve(by_layer, budget)
    if chosen is None:
        raise BadInput(_unmet(by_layer, budget))
    layers = {f.layer.name: f.layer for f in _fronts(fronts) if f.layer is not None}
    return Plan(dict(budget), dict(zip(by_layer, chosen, strict=True)), _dense_latencies(by_layer), layers)


def _fronts(fronts: Mapping[str, ParetoFront] | Iterable[ParetoFront]) -> list[ParetoFront]:
    return list(fronts.values()) if isinstance(fronts, Mapping) else list(fronts)


def _by_layer(fronts: Mapping[str, ParetoFront] | Iterable[ParetoFront]) -> dict[str, tuple[Evaluation, ...]]:
    result: dict[str, tuple[Evaluation, ...]] = {}
    for front in _fronts(fronts):
        if not front.evaluations:
            raise BadInput("a front is empty: every candidate of that layer failed; look into its failures first")
        name = front.evaluations[0].candidate.layer
        if name in result:
            raise BadInput(f"two fronts are of the layer {name!r}; merge them first")
        result[name] = front.evaluations
    if not result:
        raise BadInput("no front was given; search at least one layer first")
    return result


def _amount(evaluation: Evaluation, quantity: str, dense_latency: float) -> float:
    if quantity == "latency":
        # Ratios taken within one run decide; seconds of different runs drift with the machine.
        return evaluation.latency_ratio * dense_latency
    return evaluation.cost.flops if quantity == "flops" else evaluation.cost.parameters


def _dense_amount(evaluation: Evaluation, quantity: str, dense_latency: float) -> float:
    if quantity == "latency":
        return dense_latency
    return evaluation.dense_cost.flops if quantity == "flops" else evaluation.dense_cost.parameters


def _dense_latencies(by_layer: Mapping[str, tuple[Evaluation, ...]]) -> dict[str, float]:
    return {name: float(np.median([e.latency / e.latency_ratio for e in es])) for name, es in by_layer.items()}


def _damage(evaluation: Evaluation) -> float:
    return evaluation.sensitivity * evaluation.error


def _fractions(by_layer: Mapping[str, tuple[Evaluation, ...]], quantity: str) -> list[list[float]]:
    """Per layer and candidate its share of what all dense layers take together."""
    latencies = _dense_latencies(by_layer)
    dense = sum(_dense_amount(es[0], quantity, latencies[name]) for name, es in by_layer.items())
    return [[_amount(e, quantity, latencies[name]) / dense for e in es] for name, es in by_layer.items()]


def _solve(by_layer: Mapping[str, tuple[Evaluation, ...]], budget: Mapping[str, float]) -> list[Evaluation] | None:
    from scipy.optimize import Bounds, LinearConstraint, milp

    candidates = [(i, e) for i, es in enumerate(by_layer.values()) for e in es]
    damage = np.array([_damage(e) for _, e in candidates])
    scale = damage.max() if damage.max() > 0 else 1.0
    one_each = np.zeros((len(by_layer), len(candidates)))
    for column, (layer, _) in enumerate(candidates):
        one_each[layer, column] = 1
    rows = np.array([np.concatenate(_fractions(by_layer, quantity)) for quantity in budget])
    within = [
        LinearConstraint(one_each, 1, 1),
        LinearConstraint(rows, -np.inf, np.array(list(budget.values()))),
    ]

    def least(costs: NDArray[np.float64], *further: LinearConstraint) -> NDArray[np.float64] | None:
        found = milp(
            c=costs,
            integrality=np.ones(len(candidates), dtype=int),
            bounds=Bounds(0, 1),
            constraints=[*within, *further],
            # Some versions of HiGHS print from within presolve, and no option silences them.
            options={"mip_rel_gap": 0.0, "presolve": False},
        )
        return None if found.x is None else np.asarray(found.x > 0.5, dtype=np.float64)

    # A hair of the cost breaks ties between equally good assignments in favour of the cheaper one.
    taken = least(damage / scale + 1e-9 * rows.sum(axis=0))
    if taken is None:
        return None
    if len({e.device for _, e in candidates}) == 1 and "latency" not in budget:
        # Of assignments as good up to rounding, the fastest: an exact scheme saves FLOPs and may yet be slow.
        bound = float(damage / scale @ taken) + TIE
        latencies = np.concatenate(_fractions(by_layer, "latency"))
        fastest = least(latencies, LinearConstraint(damage[None] / scale, -np.inf, bound))
        taken = taken if fastest is None else fastest
    return [e for (_, e), chosen in zip(candidates, taken, strict=True) if chosen]


def _unmet(by_layer: Mapping[str, tuple[Evaluation, ...]], budget: Mapping[str, float]) -> str:
    least = {q: sum(min(row) for row in _fractions(by_layer, q)) for q in budget}
    wanted = ", ".join(f"{q} {limit:g}" for q, limit in budget.items())
    nearest = ", ".join(f"{q} {value:.4f}" for q, value in least.items())
    together = "" if len(budget) == 1 else " (each alone)"
    return (
        f"nothing meets the budget of {wanted} of dense: the nearest that the fronts reach is {nearest}{together}; "
        "raise the budget or search more"
    )
