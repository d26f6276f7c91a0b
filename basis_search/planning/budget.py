"""Budgets: quantity -> largest allowed fraction of what the dense layers take together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from basis_search.errors import BadInput, near_miss

QUANTITIES = ("flops", "latency", "parameters", "energy")
DEFAULT_MAX_LATENCY = 1.0
"""The limit of latency where a budget names none: a plan with fewer FLOPs than dense is not to take more time."""


class OnlySlowPlans(BadInput):
    """A budget without latency that only assignments above the largest allowed latency meet."""


def check(budget: Mapping[str, float]) -> None:
    """Raises BadInput for an empty budget, an unknown quantity, or a limit that is not above 0.

    "latency": inf next to another quantity allows any latency.
    """
    if not budget:
        raise BadInput(f"the budget is empty; name one of {', '.join(QUANTITIES)}, such as {{'flops': 0.5}}")
    for quantity, limit in budget.items():
        _known(quantity)
        if not 0 < limit < math.inf and not (limit == math.inf and quantity == "latency" and len(budget) > 1):
            raise BadInput(f"the budget of {limit} for {quantity} is not a fraction above 0, such as 0.5 of dense")


def budgets_of(fractions: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    """One budget per quantity and fraction. Raises BadInput for an unknown quantity."""
    for quantity in fractions:
        _known(quantity)
    return [{quantity: limit} for quantity, limits in fractions.items() for limit in limits]


def max_latency_of(config: Mapping[str, Any]) -> float:
    """The setting `max_latency` of a run's config: null is inf, and 1 where an earlier version wrote none.

    Raises:
        BadInput: it is no number.
    """
    limit = config.get("max_latency", DEFAULT_MAX_LATENCY)
    if limit is not None and not isinstance(limit, int | float):
        raise BadInput(f"max_latency is {limit!r} in the run's config, but a number above 0 is needed, or null for any")
    return math.inf if limit is None else float(limit)


def _known(quantity: str) -> None:
    if quantity not in QUANTITIES:
        raise BadInput(f"there is no budget in {quantity!r}{near_miss(quantity, QUANTITIES)}")


def unmet(budget: Mapping[str, float], least: Mapping[str, float]) -> str:
    """The sentence on a budget that no assignment meets; `least` is what each quantity can be reduced to by itself."""
    nearest = ", ".join(f"{quantity} {value:.4f}" for quantity, value in least.items())
    together = "" if len(least) == 1 else " (each alone)"
    return (
        f"nothing meets the budget of {text(budget)} of dense: the nearest that the fronts reach is {nearest}"
        f"{together}; raise the budget or search more"
    )


def too_slow(budget: Mapping[str, float], max_latency: float, fastest: float) -> str:
    """The sentence on a budget that only assignments above `max_latency` meet; the least latency is `fastest`."""
    allowed = math.ceil(fastest * 100) / 100
    return (
        f"every plan within {text(budget)} {excess(max_latency)} (the fastest takes {fastest:.2f} of its time); raise "
        f"max_latency (or add latency={allowed:g} to the budget) to allow it"
    )


def excess(max_latency: float) -> str:
    """The predicate of plans above a latency."""
    return "is slower than dense" if max_latency == 1 else f"exceeds latency {max_latency:g} of dense"


def text(budget: Mapping[str, float]) -> str:
    """Such as "flops 0.5, latency 2"."""
    return ", ".join(f"{quantity} {limit:g}" for quantity, limit in budget.items())
