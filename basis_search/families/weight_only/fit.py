"""Weights rounded to the nearest code: 8 bits up to the largest weight, 4 bits over the range of least error.

Clipping a group's range makes its steps smaller; of a few ranges the one is taken with the least sum of E[x_i^2] (w_i -
w'_i)^2, the output error of uncorrelated inputs. In an output metric codes are then chosen with error feedback, and the
bias takes up the mean of what is left.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from basis_search.families.protocol import Params, answering_bias, rounded_in_metric
from basis_search.families.weight_only.layout import MIDDLE, by_group, join_halves
from basis_search.families.weight_only.spec import Spec
from basis_search.layers.layer import Layer
from basis_search.layers.ridge import fitting_metric

SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Parts of a group's range that are tried."""


def fit(spec: Spec, layer: Layer) -> Params:
    """Codes, scales and the bias [out].

    With 8 bits "weight" [out, in] int8 and "scale" [out]; with 4 bits "weight" [out, ceil(in / 2)] uint8, two codes per
    byte, and "scale" and "zero" [out, groups]. Scales and zero points have the layer's dtype, in which they are exact.
    """
    layer = layer.on_device()
    weight = layer.weight.to(torch.float64 if layer.dtype == torch.float64 else torch.float32)
    if spec.bits == 8:
        scale = rounded((weight.abs().amax(1) / 127), layer.dtype)
        fed_back = rounded_in_metric(layer, weight, _nearest_of_255, scale[:, None])
        rounded_weight = weight if fed_back is None else fed_back
        codes = (rounded_weight / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
        params = {"weight": codes, "scale": scale.to(layer.dtype)}
    else:
        # With feedback weights leave the range of the given ones: to clip it costs more than finer steps save.
        shrinks = SHRINKS if fitting_metric(layer) is None else SHRINKS[:1]
        params = four_bits(weight, layer.second_moment.diagonal().to(weight), spec.group, layer.dtype, shrinks)
        by_column = [by_group(params[name].to(weight), spec.group, weight.shape[1]) for name in ("scale", "zero")]
        fed_back = rounded_in_metric(layer, weight, _nearest_of_16, *by_column)
        if fed_back is not None:
            params["weight"] = join_halves(_codes_of_16(fed_back, *by_column))
    if layer.bias is not None:
        bias = layer.bias.to(layer.dtype).clone()
        params["bias"] = bias if fed_back is None else answering_bias(layer, weight - fed_back)
    return params


def _nearest_of_255(values: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return (values / scale).round().clamp(-127, 127) * scale


def _codes_of_16(values: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return ((values - zero) / scale + MIDDLE).round().clamp(0, 15)


def _nearest_of_16(values: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return (_codes_of_16(values, scale, zero) - MIDDLE) * scale + zero


def rounded(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """`scale` rounded to `dtype` and not below its smallest normal number, in its own dtype."""
    return scale.to(dtype).clamp_min(torch.finfo(dtype).tiny).to(scale.dtype)


def four_bits(
    weight: Tensor, power: Tensor, group: int, dtype: torch.dtype, shrinks: tuple[float, ...] = SHRINKS
) -> Params:
    """Codes, scales and zero points of the weight [out, in], for inputs with E[x^2] = power [in]."""
    rows, columns = weight.shape
    missing = -columns % group
    groups = F.pad(weight, (0, missing)).view(rows, -1, group)  # [out, groups, group]
    counted = F.pad(torch.ones_like(power), (0, missing)).view(1, -1, group) > 0
    power = F.pad(power, (0, missing)).view(1, -1, group)
    low = groups.where(counted, torch.inf).amin(-1)
    high = groups.where(counted, -torch.inf).amax(-1)
    best, found = torch.full_like(low, torch.inf), None
    for shrink in shrinks:
        scale = rounded((high - low) * shrink / 15, dtype)
        zero = ((high + low) / 2 + scale / 2).to(dtype).to(scale)  # codes 0 and 15 at the same distance from the middle
        codes = ((groups - zero[..., None]) / scale[..., None] + MIDDLE).round().clamp(0, 15)
        error = (power * (groups - (codes - MIDDLE) * scale[..., None] - zero[..., None]).square()).sum(-1)
        if found is None:
            best, found = error, (scale, zero, codes)
        else:
            better = error < best
            best = best.where(~better, error)
            old_scale, old_zero, old_codes = found
            found = (
                scale.where(better, old_scale),
                zero.where(better, old_zero),
                codes.where(better[..., None], old_codes),
            )
    assert found is not None
    scale, zero, codes = found
    joined = join_halves(codes.view(rows, -1)[:, :columns])
    return {"weight": joined, "scale": scale.to(dtype), "zero": zero.to(dtype)}
