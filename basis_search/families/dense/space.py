"""The search space of the dense layer: empty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from basis_search.families.dense.spec import Spec
from basis_search.layers.layer import Layer


@dataclass
class Space:
    """Nothing to search."""


def suggest(trial: Any, layer: Layer, space: Space) -> Spec:
    """The one spec there is."""
    return Spec()
