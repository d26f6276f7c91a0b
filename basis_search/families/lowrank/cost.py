"""Operations and bytes of a call of a low-rank layer: n r (k + m) multiply-adds."""

from __future__ import annotations

from basis_search.families.lowrank.spec import Spec
from basis_search.families.protocol import Cost, element_size
from basis_search.layers.layer import LayerLike


def cost(spec: Spec, layer: LayerLike) -> Cost:
    """One multiplication and one addition per entry of both factors and row."""
    n, k, m, r = layer.batch, layer.in_features, layer.out_features, spec.rank
    entries = r * (k + m)
    return Cost(
        multiplications=n * entries,
        additions=n * entries,
        lookups=0,
        bytes=element_size(layer.dtype) * (entries + m + n * k + n * m),
        parameters=entries + m,
    )
