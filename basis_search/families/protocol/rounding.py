"""The gap between a kernel and its reference, and the largest one that rounding explains."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def tolerance(dtype: torch.dtype, length: int, growth: float = 1.0) -> float:
    """Largest relative Frobenius gap between a kernel and its reference that rounding explains.

    Inputs, intermediates and outputs are each rounded once to `dtype` (at most 4 roundings of eps/2 along one path);
    sums of `length` terms are held in float32 or better, where errors of either sign grow like sqrt(length).
    """
    storage = torch.finfo(dtype).eps
    accumulator = min(storage, torch.finfo(torch.float32).eps)
    return growth * (2 * storage + accumulator * math.sqrt(length))


def relative_gap(y: Tensor, expected: Tensor) -> float:
    """||y - expected|| / ||expected|| in float64; infinite if `y` is not finite, absolute if `expected` is zero."""
    difference = float((y.double() - expected.double()).norm())
    if difference != difference:
        return float("inf")
    scale = float(expected.double().norm())
    return difference / scale if scale > 0 else difference
