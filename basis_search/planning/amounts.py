"""What candidates and dense layers take: FLOPs, seconds, stored values and joules per forward pass of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from basis_search.errors import BadInput
from basis_search.evaluation.candidate import Evaluation
from basis_search.evaluation.timing import GRAPH
from basis_search.families.protocol import spec_to_json

Unit = list[tuple[Evaluation, ...]]
"""The choices for one layer, or for a group of layers at once: each is one evaluation per layer."""


def amount_of(evaluation: Evaluation, quantity: str, dense_latency: float) -> float | None:
    """The candidate's amount of `quantity` per forward pass, None where unknown."""
    if quantity == "latency":
        # Ratios taken within one run decide; seconds of different runs drift with the machine. A dense layer's ratio to
        # itself is 1; what the clock adds to that is noise.
        ratio = 1.0 if evaluation.candidate.family == "dense" else evaluation.timed_ratio
        return ratio * dense_latency * evaluation.calls
    if quantity == "energy":
        return None if evaluation.energy is None else evaluation.energy * evaluation.calls
    return evaluation.cost.flops * evaluation.calls if quantity == "flops" else evaluation.cost.parameters


def dense_amount_of(evaluation: Evaluation, quantity: str, dense_latency: float) -> float | None:
    """The dense layer's amount of `quantity`."""
    if quantity == "latency":
        return dense_latency * evaluation.calls
    if quantity == "energy":
        return None if evaluation.dense_energy is None else evaluation.dense_energy * evaluation.calls
    return evaluation.dense_cost.flops * evaluation.calls if quantity == "flops" else evaluation.dense_cost.parameters


def dense_latencies(table: Mapping[str, tuple[Evaluation, ...]]) -> dict[str, float]:
    """Layer -> seconds, the median over the runs that timed it; by graphs where a layer has both kinds of timings."""
    latencies = {}
    for name, evaluations in table.items():
        counted = [e for e in evaluations if e.timed == GRAPH] or evaluations
        latencies[name] = float(np.median([e.timed_latency / e.timed_ratio for e in counted]))
    return latencies


def damage_of(evaluation: Evaluation) -> float:
    """The damage to the model's output; without an output metric sensitivity x error, the rise of the model's loss."""
    return evaluation.sensitivity * evaluation.error if evaluation.damage is None else evaluation.damage


def shares_of(units: Sequence[Unit], quantity: str, latencies: Mapping[str, float]) -> list[list[float]]:
    """Per unit and candidate its fraction of what all dense layers take together.

    Raises:
        BadInput: energy that the device does not report.
    """

    def measured(value: float | None, evaluation: Evaluation) -> float:
        if value is None:
            spec = spec_to_json(evaluation.candidate.spec)
            raise BadInput(
                f"the energy of {evaluation.candidate.family} {spec} for {evaluation.candidate.layer!r} is unknown: "
                f"{evaluation.device.name} does not report it (NVIDIA GPUs do, with the extra 'energy'); give a "
                "budget in latency or flops"
            )
        return value

    def total(es: Sequence[Evaluation], amount: Callable[[Evaluation, str, float], float | None]) -> float:
        return sum(measured(amount(e, quantity, latencies[e.candidate.layer]), e) for e in es)

    dense = sum(total(unit[0], dense_amount_of) for unit in units)
    return [[total(es, amount_of) / dense for es in unit] for unit in units]
