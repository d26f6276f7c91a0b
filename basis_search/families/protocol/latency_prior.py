"""Latency ratios assumed before one is measured, interpolated between measured sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping

from basis_search.layers.layer import LayerLike


def assumed_ratio(speedups: Mapping[int, float], layer: LayerLike) -> float:
    """Latency divided by the dense layer's: 1 / speed-up at the cube root of rows x inputs x outputs.

    Args:
        speedups: n -> speed-up with n rows, inputs and outputs; interpolated in log n, constant beyond the ends.
        layer: its rows and features.
    """
    side = (layer.batch * layer.in_features * layer.out_features) ** (1 / 3)
    sizes = sorted(speedups)
    side = min(max(side, sizes[0]), sizes[-1])
    upper = next(n for n in sizes if n >= side)
    lower = max((n for n in sizes if n <= side), default=upper)
    if lower == upper:
        return 1 / speedups[upper]
    part = math.log(side / lower) / math.log(upper / lower)
    return 1 / math.exp((1 - part) * math.log(speedups[lower]) + part * math.log(speedups[upper]))
