"""y = x W^T + b in float64, with W_ji = s_j q_ji (8 bits) or s_jg (q_ji - 8) + z_jg (4 bits)."""

from __future__ import annotations

import torch
from torch import Tensor

from basis_search.families.protocol import Params
from basis_search.families.weight_only.layout import dequantised
from basis_search.families.weight_only.spec import Spec


def reference(spec: Spec, params: Params, x: Tensor) -> Tensor:
    """x [..., in] -> y [..., out], float64."""
    weight = dequantised(spec, params, torch.float64)[:, : x.shape[-1]]
    y = x.double() @ weight.T
    return y + params["bias"].double() if "bias" in params else y
