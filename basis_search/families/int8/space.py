"""The search space of int8 layers: the range of the inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from basis_search.families.int8.spec import Spec
from basis_search.layers.layer import Layer


@dataclass
class Space:
    """Bounds of the search.

    Attributes:
        reduce_range: the input ranges to try, see `Spec`.
    """

    reduce_range: tuple[bool, ...] = (True, False)


def suggest(trial: Any, layer: Layer, space: Space) -> Spec:
    """7-bit or 8-bit inputs."""
    return Spec(reduce_range=trial.suggest_categorical("reduce_range", list(space.reduce_range)))
