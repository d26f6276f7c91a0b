"""Example specs of weight-only quantised layers: 8 bits, and 4 bits in groups of two sizes."""

from __future__ import annotations

from basis_search.families.weight_only.spec import Spec
from basis_search.layers.layer import LayerLike


def examples(layer: LayerLike) -> tuple[Spec, ...]:
    """Three specs; they fit every layer."""
    return Spec(8), Spec(4, 32), Spec(4, 128)
