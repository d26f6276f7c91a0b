"""The table that plans choose from: evaluations by layer, the groups that share a spec, and what is assumed of both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from basis_search.errors import BadInput
from basis_search.evaluation.candidate import Evaluation
from basis_search.evaluation.pareto import ParetoFront
from basis_search.layers.layer import Layer
from basis_search.planning.amounts import Unit
from basis_search.planning.groups import Groups, grouped

Fronts = Mapping[str, ParetoFront | Iterable[Evaluation]] | Iterable[ParetoFront]


@dataclass(frozen=True)
class PlanTable:
    """What a plan was chosen from.

    Attributes:
        evaluations: of each layer, none of them failed.
        groups: layers that share a spec.
        max_latency: limit of latency where a budget names none.
    """

    evaluations: Mapping[str, tuple[Evaluation, ...]]
    groups: Groups
    max_latency: float


def evaluations_of(fronts: Fronts) -> tuple[dict[str, tuple[Evaluation, ...]], dict[str, Layer]]:
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
    check_damages(table)
    return table, layers


def units_of(table: Mapping[str, tuple[Evaluation, ...]], groups: Groups) -> list[Unit]:
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


def check_damages(table: Mapping[str, tuple[Evaluation, ...]]) -> None:
    """Raises BadInput where some layers have an output metric and others do not: their damages differ in unit."""
    without = [name for name, es in table.items() if any(e.damage is None for e in es)]
    measured = [name for name, es in table.items() if any(e.damage is not None for e in es)]
    if without and measured:
        raise BadInput(
            f"the layers {', '.join(without)} were evaluated without an output metric, but {', '.join(measured)} with "
            "one, and their damages have different units; capture all of them with capture(..., output=...), or plan "
            "the two kinds apart"
        )
