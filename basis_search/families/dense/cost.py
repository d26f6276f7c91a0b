"""Operations and bytes of a call of the dense layer: n k m multiply-adds."""

from __future__ import annotations

from basis_search.families.dense.spec import Spec
from basis_search.families.protocol import Cost, element_size
from basis_search.layers.layer import LayerLike


def cost(spec: Spec, layer: LayerLike) -> Cost:
    """One multiplication and one addition per weight and row (the bias replaces the first addition's zero)."""
    n, k, m = layer.batch, layer.in_features, layer.out_features
    parameters = k * m + m
    return Cost(
        multiplications=n * k * m,
        additions=n * k * m,
        lookups=0,
        bytes=element_size(layer.dtype) * (parameters + n * k + n * m),
        parameters=parameters,
    )
