"""The search space of fp8 layers: static or dynamic scales, per tensor or per row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from basis_search.errors import BadInput
from basis_search.families.fp8.kernels import KERNELS
from basis_search.families.fp8.spec import Spec
from basis_search.layers.layer import Layer


@dataclass
class Space:
    """Bounds of the search.

    Attributes:
        scales, per: to try, see `Spec`.
    """

    scales: tuple[str, ...] = ("static", "dynamic")
    per: tuple[str, ...] = ("tensor",)


def suggest(trial: Any, layer: Layer, space: Space) -> Spec:
    """One of the combinations that `torch._scaled_mm` runs for the layer.

    Raises:
        BadInput: it runs none, as on a CPU; the sentence gives its reason.
    """
    reasons = {per: KERNELS[-1].refuses(Spec(space.scales[0], per), layer) for per in space.per}
    possible = [per for per, reason in reasons.items() if reason is None]
    if not possible:
        raise BadInput(f"fp8: {next(iter(reasons.values()))}; leave fp8 out for layer {layer.name!r}")
    scales = trial.suggest_categorical("scales", list(space.scales))
    return Spec(scales, possible[0] if len(possible) == 1 else trial.suggest_categorical("per", possible))
