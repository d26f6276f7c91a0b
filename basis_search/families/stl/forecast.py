"""The error of tiles before their fit: the residual on what the waist leaves, rho(t, r) sum_{i > waist} l_i."""

from __future__ import annotations

from basis_search.families.protocol import Forecast
from basis_search.families.stl.bases import bases
from basis_search.families.stl.cost import cost
from basis_search.families.stl.spec import Spec
from basis_search.layers.layer import Layer
from basis_search.layers.output_spectrum import tail

ROUNDING = 1e-13
PASSES = 1.2
"""Encode and decode move more data per operation than a dense layer does."""


def forecast(spec: Spec, layer: Layer) -> Forecast:
    """Residual for independent entries times energy; inputs with structure do better once the bases are fitted."""
    latency = PASSES * cost(spec, layer).flops / (2 * layer.batch * layer.in_features * layer.out_features)
    kept = bases(spec)
    if kept.exact:
        return Forecast(ROUNDING, latency)
    return Forecast(kept.residual * tail(layer, spec.waist), latency)
