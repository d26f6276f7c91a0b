"""y_j = s t_j sum_i q_i w_ji + b_j with codes q, w in e4m3 and scales s of the inputs and t of the weights."""

from __future__ import annotations

import torch
from torch import Tensor

from basis_search.families.fp8.scales import LARGEST, from_exponent, quantise
from basis_search.families.fp8.spec import Spec
from basis_search.families.protocol import Params


def static_scale(params: Params) -> Tensor | None:
    """The calibrated scale of the inputs, float32 [1], or None."""
    return from_exponent(params["input_exponent"]) if "input_exponent" in params else None


def reference(spec: Spec, params: Params, x: Tensor) -> Tensor:
    """x [..., in] -> y [..., out], float64; all of x is one call."""
    codes, scale = quantise(spec, x, static_scale(params))
    weight = params["weight"].view(torch.float8_e4m3fn)
    y = (codes.double() @ weight.double().T) * (scale.double() * params["largest"].double() / LARGEST)
    return y + params["bias"].double() if "bias" in params else y
