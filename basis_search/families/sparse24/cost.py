"""Operations and bytes of a call of a 2:4-sparse layer."""

from __future__ import annotations

from basis_search.families.protocol import Cost, element_size
from basis_search.families.sparse24.layout import PADDED, padded
from basis_search.families.sparse24.spec import Spec
from basis_search.layers.layer import LayerLike


def cost(spec: Spec, layer: LayerLike) -> Cost:
    """One multiply-add per kept weight and row; four bits of positions per group."""
    n, k, m = layer.batch, layer.in_features, layer.out_features
    kept, index = m * padded(k) // 2, m * padded(k) // PADDED
    return Cost(
        multiplications=n * kept,
        additions=n * kept,
        lookups=0,
        bytes=index + element_size(layer.dtype) * (kept + m + n * k + n * m),
        parameters=kept + index + m,
    )
