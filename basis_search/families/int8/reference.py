"""y_j = s t_j sum_i (q_i - z) w_ji + b_j with int8 weights w, scales t and codes q_i = round(x_i / s + z).

The scale s and the zero point z follow from the smallest and largest input of the call, by the rule of torch's
quantised operators; q is rounded exactly as in those operators, so that no two kernels differ in a code.
"""

import ctypes
import math

import torch
from torch import Tensor

from basis_search.families.int8.spec import Spec
from basis_search.families.protocol import Params


def _single(value: float) -> float:
    """`value` rounded to float32."""
    return ctypes.c_float(value).value


SMALLEST_SCALE = _single(6.1e-5)


def qparams(low: float, high: float, reduce_range: bool) -> tuple[float, int]:
    """Scale and zero point for float32 inputs in [low, high]; the scale is a float32 value.

    The rule of ChooseQuantizationParams in ATen/native/quantized/cpu/QuantUtils.h: the range is widened to
    include zero, the scale is bounded away from zero, and the zero point is computed from the end of the range where it
    has the smaller rounding error.
    """
    levels = 127 if reduce_range else 255
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / levels
    if math.isnan(scale) or math.isinf(scale):
        return math.nan, 0
    if _single(scale) == 0.0 or math.isinf(_single(1.0 / _single(scale))):
        scale = 0.1
    if scale < SMALLEST_SCALE:
        widen = _single(SMALLEST_SCALE / _single(scale))
        if low == 0.0:
            high = _single(SMALLEST_SCALE * levels)
        elif high == 0.0:
            low = _single(-SMALLEST_SCALE * levels)
        else:
            low, high = _single(low * widen), _single(high * widen)
        scale = SMALLEST_SCALE
    from_low, from_high = -low / scale, levels - high / scale
    zero = from_low if -abs(low / scale) < levels - abs(high / scale) else from_high
    return _single(scale), min(max(round(zero), 0), levels)


def qparams_on_device(x: Tensor, reduce_range: bool) -> tuple[Tensor, Tensor]:
    """`qparams` of the smallest and largest of float32 x as tensors without dimensions, float64, on x's device.

    The same operations in the same precision, so that the results are equal bit by bit, and the host reads nothing.
    """
    levels = 127 if reduce_range else 255
    low, high = (v.double() for v in torch.aminmax(x.detach()))
    low, high = low.clamp_max(0.0), high.clamp_min(0.0)
    scale = (high - low) / levels
    none = _rounded(scale) == 0
    scale = torch.where(none | _rounded(1 / _rounded(scale)).isinf(), 0.1, scale)
    widened = scale < SMALLEST_SCALE
    widen = _rounded(SMALLEST_SCALE / _rounded(scale))
    end = _single(SMALLEST_SCALE * levels)
    wide_low = torch.where(low == 0, 0.0, torch.where(high == 0, -end, _rounded(low * widen)))
    wide_high = torch.where(low == 0, end, torch.where(high == 0, 0.0, _rounded(high * widen)))
    low, high = torch.where(widened, wide_low, low), torch.where(widened, wide_high, high)
    scale = torch.where(widened, SMALLEST_SCALE, scale)
    from_low, from_high = -low / scale, levels - high / scale
    zero = torch.where(-(low / scale).abs() < levels - (high / scale).abs(), from_low, from_high)
    finite = (high - low).isfinite()
    return torch.where(finite, _rounded(scale), math.nan), torch.where(finite, zero.round().clamp(0, levels), 0.0)


def _rounded(value: Tensor) -> Tensor:
    """`_single` of float64 tensors."""
    return value.float().double()


def quantise(x: Tensor, reduce_range: bool) -> tuple[Tensor, float | Tensor]:
    """x [..., in] -> (q - z [..., in], whole numbers in float32; s): float32(x) is about s (q - z).

    q = round(x * (1/s) + z), where 1/s is rounded to float32 and the multiply-add is fused, i.e. rounded once: the
    product of two float32 is exact in float64. Halves go to even. Without rows there are no codes and s is 1. On the
    CPU s is a number; elsewhere it is a float64 tensor without dimensions on x's device, which the host does not read.
    """
    x = x.float()
    scale: float | Tensor
    if x.numel() == 0:
        return x, 1.0
    if x.device.type == "cpu":
        low, high = (float(v) for v in torch.aminmax(x.detach()))
        scale, zero = qparams(low, high, reduce_range)
        return (x.double() * _single(1.0 / scale) + zero).float().round().clamp(0, 255) - zero, scale
    scale, shift = qparams_on_device(x, reduce_range)
    return (x.double() * _rounded(1 / scale) + shift).float().round().clamp(0, 255) - shift, scale


def reference(spec: Spec, params: Params, x: Tensor) -> Tensor:
    """x [..., in] -> y [..., out], float64; all of x is one call, with one scale."""
    codes, scale = quantise(x, spec.reduce_range)
    y = (codes.double() @ params["weight"].double().T) * (scale * params["scale"].double())
    return y + params["bias"].double() if "bias" in params else y
