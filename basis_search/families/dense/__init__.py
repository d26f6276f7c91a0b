"""The layer as it is, y = x W^T + b: the baseline of every other family and the smallest example of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from basis_search.families.dense.forecast import forecast
from basis_search.families.dense.kernels import KERNELS
from basis_search.families.dense.spec import Spec
from basis_search.families.protocol import Cost, Params, element_size
from basis_search.layers.layer import Layer, LayerLike

__all__ = ["FITS_ROWS", "KERNELS", "Space", "Spec", "cost", "fit", "forecast", "suggest"]

FITS_ROWS = False


@dataclass
class Space:
    """Nothing to search."""


def suggest(trial: Any, layer: Layer, space: Space) -> Spec:
    """The one spec there is."""
    return Spec()


def fit(spec: Spec, layer: Layer) -> Params:
    """The weight [out, in] and the bias [out], unchanged."""
    params = {"weight": layer.weight.to(layer.dtype)}
    if layer.bias is not None:
        params["bias"] = layer.bias.to(layer.dtype)
    return params


def cost(spec: Spec, layer: LayerLike) -> Cost:
    """One multiplication and one addition per weight and row (the bias replaces the first addition's zero)."""
    n, k, m = layer.batch, layer.in_features, layer.out_features
    parameters = k * m + m
    return Cost(
        multiplications=n * k * m,
        additions=n * k * m,
        lookups=0,
        bytes=element_size(layer.dtype) * (parameters + n * k + n * m),
        parameters=parameters,
    )
