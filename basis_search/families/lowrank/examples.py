"""Example specs of low-rank layers: shares of the break-even rank."""

from __future__ import annotations

from basis_search.families.lowrank.spec import Spec
from basis_search.layers.layer import LayerLike

PARAMETER_SHARES = (0.5, 0.125, 0.25, 0.75, 1.0)
"""Parameters of the examples, as shares of the dense layer's."""


def examples(layer: LayerLike) -> tuple[Spec, ...]:
    """Ranks up to in * out / (in + out), where the factors cost as much as the dense layer; half of it first."""
    k, m = layer.in_features, layer.out_features
    ranks = dict.fromkeys(max(1, int(share * k * m / (k + m))) for share in PARAMETER_SHARES)
    return tuple(Spec(rank=rank) for rank in ranks)
