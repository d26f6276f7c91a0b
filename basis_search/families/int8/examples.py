"""Example specs of int8 layers: 7-bit and 8-bit inputs."""

from __future__ import annotations

from basis_search.families.int8.spec import Spec
from basis_search.layers.layer import LayerLike


def examples(layer: LayerLike) -> tuple[Spec, ...]:
    """Both ranges of the inputs; they fit every layer."""
    return Spec(reduce_range=True), Spec(reduce_range=False)
