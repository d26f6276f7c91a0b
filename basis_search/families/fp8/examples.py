"""Example specs of fp8 layers: static and dynamic scales, and a scale per row."""

from __future__ import annotations

from basis_search.families.fp8.spec import Spec
from basis_search.layers.layer import LayerLike


def examples(layer: LayerLike) -> tuple[Spec, ...]:
    """Three specs; they fit every layer."""
    return Spec("static"), Spec("dynamic"), Spec("dynamic", "row")
