"""The error of rank r before its fit, exact on the inputs seen: the energies of W C^(1/2) from r on."""

from __future__ import annotations

from basis_search.families.lowrank.spec import Spec
from basis_search.families.protocol import Forecast
from basis_search.layers.layer import Layer
from basis_search.layers.output_spectrum import tail

CALL = 0.03
"""Latency of a second call, over a dense layer's of usual size."""


def forecast(spec: Spec, layer: Layer) -> Forecast:
    """The tail of the spectrum, and the time that the operations take at the dense layer's speed."""
    k, m = layer.in_features, layer.out_features
    return Forecast(tail(layer, spec.rank), CALL + spec.rank * (k + m) / (k * m))
