"""Predicted error of rank r: the squared singular values of W C^(1/2) from r on, exact on the layer's inputs."""

from __future__ import annotations

from basis_search.families.lowrank.spec import Spec
from basis_search.families.protocol import Forecast
from basis_search.layers.layer import Layer
from basis_search.layers.output_spectrum import tail

CALL_LATENCY = 0.03
"""Latency of a second call of torch's linear, divided by that of a dense layer of usual size."""


def forecast(spec: Spec, layer: Layer) -> Forecast:
    """The tail of the spectrum, and the latency of the operations at the dense layer's rate."""
    k, m = layer.in_features, layer.out_features
    return Forecast(tail(layer, spec.rank), CALL_LATENCY + spec.rank * (k + m) / (k * m))
