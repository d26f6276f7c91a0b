"""Example specs of Strassen-Tile layers: exact and approximate bases."""

from __future__ import annotations

from basis_search.families.stl.spec import Spec
from basis_search.layers.layer import LayerLike


def examples(layer: LayerLike) -> tuple[Spec, ...]:
    """Strassen's scheme first; all fit every layer, whose sides are padded to whole tiles."""
    return (
        Spec(tile=2, rank=7, basis="strassen"),
        Spec(tile=2, rank=7, basis="winograd"),
        Spec(tile=4, rank=49, basis="winograd2"),
        *(Spec(tile=4, rank=rank, basis="approximate") for rank in (16, 24, 32)),
    )
