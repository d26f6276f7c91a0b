"""Budgets: quantity -> largest allowed fraction of what the dense layers take together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from basis_search.errors import BadInput, near_miss

QUANTITIES = ("flops", "latency", "parameters", "energy")
DEFAULT_LATENCY = 1.0
"""The limit of latency where a budget names none: fewer FLOPs may take more time, and a plan must not."""


class OnlySlowPlans(BadInput):
    """A budget that only assignments slower than dense meet, which names no latency to allow them."""


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
    """One budget per quantity and fraction.

    A latency above 1 next to fractions of other quantities is no budget: the plans for those quantities may take as
    much (the largest, where there are several).

    Raises:
        BadInput: an unknown quantity.
    """
    for quantity in fractions:
        _known(quantity)
    others = any(limits for quantity, limits in fractions.items() if quantity != "latency")
    allowed = [limit for limit in fractions.get("latency", ()) if limit > 1] if others else []
    found = []
    for quantity, limits in fractions.items():
        for limit in limits:
            if quantity != "latency":
                found.append({quantity: limit} | ({"latency": max(allowed)} if allowed else {}))
            elif limit not in allowed:
                found.append({quantity: limit})
    return found


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


def too_slow(budget: Mapping[str, float], fastest: float) -> str:
    """The sentence on a budget that only assignments slower than dense meet; `fastest` is the least latency of them."""
    allowed = math.ceil(fastest * 100) / 100
    return (
        f"nothing that meets the budget of {text(budget)} of dense keeps to latency <= {DEFAULT_LATENCY:g}, which "
        f"plans do unless the budget names a latency: the fastest takes {fastest:.4f} of dense; allow it with latency "
        f"{allowed:g} in the budget (inf for any), raise the budget or search more"
    )


def text(budget: Mapping[str, float]) -> str:
    """Such as "flops 0.5, latency 2"."""
    return ", ".join(f"{quantity} {limit:g}" for quantity, limit in budget.items())
