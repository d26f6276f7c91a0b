"""Codes, scales and zero points as stored, and the weight that they stand for."""

from __future__ import annotations

import torch
from torch import Tensor

from basis_search.families.protocol import Params
from basis_search.families.weight_only.spec import Spec

MIDDLE = 8
"""The 4-bit code that stands for the zero point, as in torch's operator."""


def join_halves(codes: Tensor) -> Tensor:
    """Codes [out, in] in [0, 15] -> uint8 [out, ceil(in / 2)], the even column in the high half of each byte."""
    codes = torch.nn.functional.pad(codes.to(torch.uint8), (0, codes.shape[1] % 2))
    return codes[:, ::2] << 4 | codes[:, 1::2]


def split_halves(joined: Tensor) -> Tensor:
    """The inverse of `join_halves`, with the padding: uint8 [out, columns] -> uint8 [out, 2 columns]."""
    return torch.stack([joined >> 4, joined & 15], -1).flatten(1)


def by_group(values: Tensor, group: int, columns: int) -> Tensor:
    """[out, groups] -> [out, columns]: the value of each column's group."""
    return values.repeat_interleave(group, 1, output_size=values.shape[1] * group)[:, :columns]


def dequantised(spec: Spec, params: Params, dtype: torch.dtype) -> Tensor:
    """The weight [out, in] in `dtype`, or [out, in + 1] with a last column to leave out; differentiable in the scales.

    s q with 8 bits, s (q - 8) + z with 4.
    """
    scale = params["scale"].to(dtype)
    if spec.bits == 8:
        return params["weight"].to(dtype) * scale[:, None]
    codes = split_halves(params["weight"])
    columns = min(codes.shape[1], scale.shape[1] * spec.group)
    scales, zeros = (by_group(v, spec.group, columns) for v in (scale, params["zero"].to(dtype)))
    return (codes[:, :columns].to(dtype) - MIDDLE) * scales + zeros
