"""Predicted error of the weights that are not kept, as if inputs were uncorrelated."""

from __future__ import annotations

from basis_search.families.protocol import Forecast, assumed_ratio
from basis_search.families.sparse24.layout import GROUP, KEPT, pad
from basis_search.families.sparse24.spec import Spec
from basis_search.layers.layer import Layer
from basis_search.layers.output_spectrum import output_gains, searched_power

SPEEDUPS = {4096: 1.1, 8192: 1.5}
"""Assumed until one is measured. On an H200 torch's semi-structured tensors reach 1.51 at 8192; below, eager calls take
longer than dense ones, but launches count for nothing where a CUDA graph is replayed."""


def forecast(spec: Spec, layer: Layer) -> Forecast:
    """Sum of w^2 E[x^2] over the two smallest of each group, in an output metric times its diagonal."""
    layer = layer.on_device()
    power = searched_power(layer)
    terms = layer.weight.double().square() * layer.second_moment.diagonal()
    dropped = pad(terms).view(len(terms), -1, GROUP).sort(dim=-1).values[..., :KEPT]
    error = float(output_gains(layer) @ dropped.sum((1, 2))) / power if power > 0 else 0.0
    return Forecast(error, assumed_ratio(SPEEDUPS, layer))
