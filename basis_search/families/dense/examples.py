"""The dense layer's one spec."""

from __future__ import annotations

from basis_search.families.dense.spec import Spec
from basis_search.layers.layer import LayerLike


def examples(layer: LayerLike) -> tuple[Spec, ...]:
    """The only spec."""
    return (Spec(),)
