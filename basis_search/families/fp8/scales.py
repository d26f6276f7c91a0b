"""Scales of the inputs: powers of two, so that dividing by them is exact in every dtype and all kernels' codes agree.

e4m3 holds the same relative rounding error at every exponent, so a power of two costs no accuracy; it may leave the
largest octave of the range unused. Everything is computed on the tensor's device and never read by the host.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from basis_search.families.fp8.spec import Spec

LARGEST = 448.0
"""Largest value of e4m3; a cast of more is not a number in some versions of torch."""
SMALLEST_SCALE = 2.0**-120
"""So that its inverse is finite in bfloat16 and float32."""


def power_of_two(largest: Tensor) -> Tensor:
    """The least power of two, float32, from which on `largest` [...] >= 0 divided by it is in range; NaN if not finite.

    A float32 rounded up to a power of two is its exponent, one more where the mantissa is not zero.
    """
    needed = (largest.float() / LARGEST).clamp_min(SMALLEST_SCALE)
    scale = ((needed.view(torch.int32) + 0x7FFFFF) & 0x7F800000).view(torch.float32)
    return torch.where(needed.isfinite(), scale, math.nan)


def to_exponent(scale: Tensor) -> Tensor:
    """The exponents of powers of two in float32 plus 127, uint8: the bits of a float32 that hold them."""
    return (scale.view(torch.int32) >> 23).to(torch.uint8)


def from_exponent(exponent: Tensor) -> Tensor:
    """2 ** (exponent - 127) in float32."""
    return (exponent.to(torch.int32) << 23).view(torch.float32)


def largest_of(x: Tensor, per_row: bool) -> Tensor:
    """max |x| of a non-empty x: [1], or [..., 1] along the last dimension."""
    low, high = torch.aminmax(x, dim=-1, keepdim=True) if per_row else torch.aminmax(x)
    largest = torch.maximum(-low, high)
    return largest if per_row else largest.reshape(1)


def quantise(spec: Spec, x: Tensor, static: Tensor | None) -> tuple[Tensor, Tensor]:
    """x [..., in] -> (codes [..., in] in float8_e4m3fn; their scale in float32, [1] or [..., 1]).

    Args:
        spec: which scales.
        x: floating, any dtype; other than bfloat16 it is rounded to float32 first.
        static: the scale [1] of `scales="static"`.
    """
    if x.dtype not in (torch.bfloat16, torch.float32):
        x = x.float()
    if spec.scales == "static":
        assert static is not None
        codes = (x * static.reciprocal().to(x.dtype)).clamp(-LARGEST, LARGEST)
        return codes.to(torch.float8_e4m3fn), static
    if x.numel() == 0:
        return x.to(torch.float8_e4m3fn), x.new_ones(1, dtype=torch.float32)
    scale = power_of_two(largest_of(x, spec.per == "row"))
    return (x * scale.reciprocal().to(x.dtype)).to(torch.float8_e4m3fn), scale
