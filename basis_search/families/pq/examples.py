"""Example specs of product quantisation: numbers of codebooks, encoders and tables."""

from __future__ import annotations

from basis_search.families.pq.spec import Spec
from basis_search.layers.layer import LayerLike

COLUMNS = (4, 2, 8, 16)
"""Columns per codebook."""


def examples(layer: LayerLike) -> tuple[Spec, ...]:
    """A codebook for every 4 columns first; all fit every layer that has enough rows."""
    counts = dict.fromkeys(max(1, layer.in_features // columns) for columns in COLUMNS)
    trees = tuple(Spec(codebooks=count) for count in counts)
    return (*trees, Spec(trees[0].codebooks, "kmeans"), Spec(trees[0].codebooks, table="float32"))
