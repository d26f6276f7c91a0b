"""Weights rounded to e4m3 with the scale max |W| / 448, of all weights or of each output's.

In an output metric they are rounded with error feedback, and the bias takes up the mean of what is left.
"""

import torch
from torch import Tensor

from basis_search.families.fp8.scales import LARGEST, largest_of, power_of_two, to_exponent
from basis_search.families.fp8.spec import Spec
from basis_search.families.protocol import Params, answering_bias, rounded_in_metric
from basis_search.layers.layer import Layer


def fit(spec: Spec, layer: Layer) -> Params:
    """ "weight" [out, in], "largest" [1] or [out], "input_exponent" [1] for static scales, "bias" [out].

    The weight is uint8, the bits of float8_e4m3fn, since modules convert floating tensors when they change their dtype.
    "largest" is what the code 448 stands for, in the layer's dtype; its gradient is of the order of a weight's. The
    scale of the inputs is 2 ** (input_exponent - 127), the exponent a uint8.
    """
    layer = layer.on_device()
    wide = torch.float64 if layer.dtype == torch.float64 else torch.float32
    dense = layer.weight.to(wide)
    largest = dense.abs().amax(1) if spec.per == "row" else dense.abs().amax().reshape(1)
    # A row of zeros, or one so small that its scale is subnormal, gets the smallest normal scale.
    least = max(LARGEST * torch.finfo(torch.float32).tiny, torch.finfo(layer.dtype).tiny)
    largest = largest.clamp_min(least).to(layer.dtype)
    inverse = (LARGEST / largest.to(wide))[:, None]
    fed_back = rounded_in_metric(layer, dense, _nearest, inverse)
    rounded = dense if fed_back is None else fed_back
    codes = _codes(rounded, inverse)
    params = {"weight": codes.view(torch.uint8), "largest": largest}
    if spec.scales == "static":
        params["input_exponent"] = to_exponent(power_of_two(largest_of(layer.inputs, per_row=False)))
    if layer.bias is not None:
        params["bias"] = layer.bias.to(layer.dtype) if fed_back is None else answering_bias(layer, dense - rounded)
    return params


def _codes(values: Tensor, inverse: Tensor) -> Tensor:
    return (values * inverse).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)


def _nearest(values: Tensor, inverse: Tensor, zero: Tensor) -> Tensor:
    return _codes(values, inverse).to(values.dtype) / inverse
