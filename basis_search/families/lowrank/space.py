"""The search space of low-rank layers: ranks below break-even, r (in + out) < in * out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from basis_search.errors import BadInput
from basis_search.families.lowrank.spec import Spec
from basis_search.layers.layer import Layer


@dataclass
class Space:
    """Bounds of the search.

    Attributes:
        step: ranks are multiples of it; of 1 on layers whose break-even rank is below it.
        highest: largest rank, or None for break-even.
    """

    step: int = 4
    highest: int | None = None


def suggest(trial: Any, layer: Layer, space: Space) -> Spec:
    """A rank below in * out / (in + out), where the factors would cost what the dense layer does.

    Raises:
        BadInput: no rank is below, or the space admits none.
    """
    k, m = layer.in_features, layer.out_features
    highest = (k * m - 1) // (k + m)  # strictly below break-even
    if highest < 1:
        raise BadInput(
            f"lowrank: layer {layer.name!r} is {m} x {k}, where even rank 1 costs as much as the dense layer; leave "
            "lowrank out for it"
        )
    if space.step < 1 or (space.highest is not None and space.highest < 1):
        raise BadInput(f"lowrank: step is {space.step} and highest {space.highest}, but both must be at least 1")
    if space.highest is not None:
        highest = min(highest, space.highest)
    step = space.step if space.step <= highest else 1
    return Spec(rank=trial.suggest_int("rank", step, highest // step * step, step=step))
