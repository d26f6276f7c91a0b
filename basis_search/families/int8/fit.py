"""Symmetric weights, one scale per output: w = round(W / t), t = max |W| / 127.

In an output metric they are rounded with error feedback instead, and the bias takes up the mean of what is left. The
codes are other ones of the same format.
"""

import torch
from torch import Tensor

from basis_search.families.int8.spec import Spec
from basis_search.families.protocol import Params, answering_bias, rounded_in_metric
from basis_search.layers.layer import Layer


def fit(spec: Spec, layer: Layer) -> Params:
    """ "weight" [out, in] int8 in [-127, 127], "scale" [out] float32 (float64 in a float64 layer), "bias" [out]."""
    layer = layer.on_device()
    wide = torch.float64 if layer.dtype == torch.float64 else torch.float32
    dense = layer.weight.to(wide)
    scale = dense.abs().amax(1) / 127  # [out]
    # A row of zeros, or one so small that its scale is subnormal, gets the smallest normal scale.
    scale = scale.clamp_min(torch.finfo(torch.float32).tiny)
    fed_back = rounded_in_metric(layer, dense, _nearest, scale[:, None])
    rounded = dense if fed_back is None else fed_back
    params = {"weight": (rounded / scale[:, None]).round().clamp(-127, 127).to(torch.int8), "scale": scale}
    if layer.bias is not None:
        params["bias"] = layer.bias.to(layer.dtype) if fed_back is None else answering_bias(layer, dense - rounded)
    return params


def _nearest(values: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return (values / scale).round().clamp(-127, 127) * scale
