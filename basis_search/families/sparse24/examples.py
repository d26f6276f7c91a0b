"""Example specs of 2:4-sparse layers: without and with compensation."""

from __future__ import annotations

from basis_search.families.sparse24.spec import Spec
from basis_search.layers.layer import LayerLike


def examples(layer: LayerLike) -> tuple[Spec, ...]:
    """Both; they fit every layer."""
    return Spec(compensate=False), Spec(compensate=True)
