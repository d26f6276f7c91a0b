"""Limits on candidates: quantity(candidate) / quantity(dense layer) <= limit."""

from __future__ import annotations

from collections.abc import Mapping

from basis_search.errors import BadInput, near_miss
from basis_search.evaluation.candidate import Evaluation
from basis_search.families.protocol import Cost

ANALYTIC = ("flops", "parameters", "bytes")
"""Computed from the spec; bytes are the least memory traffic of a call: parameters, inputs and outputs, each once."""
MEASURED = ("error", "latency")
LIMITS = (*ANALYTIC, *MEASURED)


def check(limits: Mapping[str, float]) -> None:
    """Raises BadInput for an unknown quantity or a limit that is not above 0."""
    for quantity, limit in limits.items():
        if quantity not in LIMITS:
            raise BadInput(f"there is no limit on {quantity!r}{near_miss(quantity, LIMITS)}")
        if not 0 < limit < float("inf"):
            raise BadInput(
                f"the limit of {limit} on {quantity} is not a number above 0, such as 0.5 of the dense layer"
            )


def excess(limits: Mapping[str, float], cost: Cost, dense: Cost) -> dict[str, float]:
    """The excess of a cost over each analytic limit, relative to dense; 0 or less within the limit."""
    return {q: getattr(cost, q) / getattr(dense, q) - limits[q] for q in ANALYTIC if q in limits}


def excess_of(limits: Mapping[str, float], evaluation: Evaluation) -> dict[str, float]:
    """The excess of an evaluation over each limit, measured quantities included where it has no failure."""
    found = excess(limits, evaluation.cost, evaluation.dense_cost)
    if evaluation.failure is None:
        measured = {"error": evaluation.error, "latency": evaluation.timed_ratio}
        found |= {q: measured[q] - limits[q] for q in MEASURED if q in limits}
    return found


def kept(limits: Mapping[str, float], evaluation: Evaluation) -> bool:
    """Whether an evaluation is within all limits."""
    return all(amount <= 0 for amount in excess_of(limits, evaluation).values())
