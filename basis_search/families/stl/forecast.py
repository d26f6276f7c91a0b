"""Predicted error and latency: rho(t, r) sum_{i > s} l_i, the bases' residual times the energy beyond a low rank s."""

from __future__ import annotations

from basis_search.families.protocol import Forecast
from basis_search.families.stl.bases import bases
from basis_search.families.stl.cost import cost
from basis_search.families.stl.spec import Spec
from basis_search.layers.layer import Layer
from basis_search.layers.output_spectrum import tail

ROUNDING_ERROR = 1e-13
"""Predicted relative error of exact bases, from rounding alone."""
TIME_PER_FLOP = 1.2
"""Time per operation relative to a dense layer: encode and decode move more data per operation."""


def forecast(spec: Spec, layer: Layer) -> Forecast:
    """Residual for independent entries times energy; fits to correlated inputs have smaller errors."""
    latency = TIME_PER_FLOP * cost(spec, layer).flops / (2 * layer.batch * layer.in_features * layer.out_features)
    kept = bases(spec)
    if kept.exact:
        return Forecast(ROUNDING_ERROR, latency)
    return Forecast(kept.residual * tail(layer, spec.waist), latency)
