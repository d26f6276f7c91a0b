"""Operations and bytes of a call of a weight-only quantised layer."""

from __future__ import annotations

from basis_search.families.protocol import Cost, element_size
from basis_search.families.weight_only.spec import Spec
from basis_search.layers.layer import LayerLike


def cost(spec: Spec, layer: LayerLike) -> Cost:
    """The dense layer's operations plus a multiplication per output and group, and with 4 bits an addition.

    FLOPs do not fall, bytes do, and a call with few rows takes as long as its bytes. The zero point of a group is added
    once per output, times the sum of the group's inputs.
    """
    n, k, m = layer.batch, layer.in_features, layer.out_features
    groups = spec.groups(layer)
    codes = k * m if spec.bits == 8 else m * (-(-k // 2))
    zeros = groups if spec.bits == 4 else 0
    scales = m * (groups + zeros)
    return Cost(
        multiplications=n * m * (k + groups + zeros),
        additions=n * (m * (k + zeros) + (k if zeros else 0)),
        lookups=0,
        bytes=codes + element_size(layer.dtype) * (scales + m + n * k + n * m),
        parameters=codes + scales + m,
    )
