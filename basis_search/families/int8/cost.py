"""Operations and bytes of a call of an int8 layer."""

from __future__ import annotations

from basis_search.families.int8.spec import Spec
from basis_search.families.protocol import Cost, element_size
from basis_search.layers.layer import LayerLike

SCALE_BYTES = 4


def cost(spec: Spec, layer: LayerLike) -> Cost:
    """The dense layer's operations, those of int8 counted like those of floats, and the coding of inputs and outputs.

    The flops do not fall: what falls is latency, where the CPU does more int8 operations a second, and bytes, with one
    byte a weight. Coding takes, per input, two compares for the range, a multiply-add and a zero point to subtract; per
    output, one multiplication.
    """
    n, k, m = layer.batch, layer.in_features, layer.out_features
    return Cost(
        multiplications=n * (k * m + k + m),
        additions=n * (k * m + 4 * k),
        lookups=0,
        bytes=k * m + SCALE_BYTES * m + element_size(layer.dtype) * (m + n * k + n * m),
        parameters=k * m + 2 * m,
    )
