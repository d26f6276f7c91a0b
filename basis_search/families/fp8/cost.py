"""Operations and bytes of a call of an fp8 layer."""

from __future__ import annotations

from basis_search.families.fp8.spec import Spec
from basis_search.families.protocol import Cost, element_size
from basis_search.layers.layer import LayerLike

SCALE_BYTES = 4


def cost(spec: Spec, layer: LayerLike) -> Cost:
    """The dense layer's operations, fp8 counted like float, plus scaling inputs and outputs.

    FLOPs do not fall. Latency does on tensor cores with twice as many fp8 operations per second, and so do bytes: a
    weight takes one. An input takes a multiplication and two comparisons, with the limits or for the largest; an output
    takes one multiplication.
    """
    n, k, m = layer.batch, layer.in_features, layer.out_features
    scales = (m if spec.per == "row" else 1) + (spec.scales == "static")
    return Cost(
        multiplications=n * (k * m + k + m),
        additions=n * (k * m + 2 * k),
        lookups=0,
        bytes=k * m + SCALE_BYTES * scales + element_size(layer.dtype) * (m + n * k + n * m),
        parameters=k * m + scales + m,
    )
