"""Predicted rounding error, step^2 / 12 per weight, and latency in proportion to bytes."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from basis_search.families.protocol import Forecast, element_size, rounding_gains
from basis_search.families.weight_only.cost import cost
from basis_search.families.weight_only.spec import Spec
from basis_search.layers.layer import Layer
from basis_search.layers.output_spectrum import searched_power

OVERHEAD = 0.15
"""Latency beyond the bytes', relative to the dense layer's; assumed until one is measured."""


def forecast(spec: Spec, layer: Layer) -> Forecast:
    """Uniform rounding noise of the weights, each row or group over its range in 254 or 15 steps.

    Weighted by the output metric where there is one, with error feedback.
    """
    layer = layer.on_device()
    gains, power = rounding_gains(layer)
    weight = layer.weight.double()
    if spec.bits == 8:
        error = gains @ (weight.abs().amax(1) / 127).square() * power.sum()
    else:
        missing = -layer.in_features % spec.group
        groups = F.pad(weight, (0, missing), value=torch.nan).view(len(weight), -1, spec.group)
        high, low = groups.nan_to_num(-torch.inf).amax(-1), groups.nan_to_num(torch.inf).amin(-1)
        shares = F.pad(power, (0, missing)).view(-1, spec.group).sum(1)
        error = gains @ ((high - low) / 15).square() @ shares
    total = searched_power(layer)
    n, k, m = layer.batch, layer.in_features, layer.out_features
    dense_bytes = element_size(layer.dtype) * (k * m + m + n * k + n * m)
    ratio = cost(spec, layer).bytes / dense_bytes + OVERHEAD
    return Forecast(float(error) / 12 / total if total > 0 else 0.0, ratio)
