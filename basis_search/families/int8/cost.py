"""Operations and bytes of a call of an int8 layer."""

from __future__ import annotations

from basis_search.families.int8.spec import Spec
from basis_search.families.protocol import Cost, element_size
from basis_search.layers.layer import LayerLike

SCALE_BYTES = 4


def cost(spec: Spec, layer: LayerLike) -> Cost:
    """The dense layer's operations, int8 counted like float, plus quantising the inputs and rescaling the outputs.

    FLOPs do not fall. Latency does, on CPUs with more int8 than float operations per second, and so do bytes: a weight
    takes one. An input takes two comparisons for the range, a multiply-add and the subtraction of the zero point; an
    output takes one multiplication.
    """
    n, k, m = layer.batch, layer.in_features, layer.out_features
    return Cost(
        multiplications=n * (k * m + k + m),
        additions=n * (k * m + 4 * k),
        lookups=0,
        bytes=k * m + SCALE_BYTES * m + element_size(layer.dtype) * (m + n * k + n * m),
        parameters=k * m + 2 * m,
    )
