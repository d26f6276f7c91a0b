"""The dense layer's parameters: its weight and bias, unchanged."""

from basis_search.families.dense.spec import Spec
from basis_search.families.protocol import Params
from basis_search.layers.layer import Layer


def fit(spec: Spec, layer: Layer) -> Params:
    """The weight [out, in] and the bias [out], unchanged."""
    layer = layer.on_device()
    params = {"weight": layer.weight.to(layer.dtype)}
    if layer.bias is not None:
        params["bias"] = layer.bias.to(layer.dtype)
    return params
