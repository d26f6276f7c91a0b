"""torch's linear on inputs of any layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 32
"""bfloat16 values in a row of an AMX tile."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x W^T + b for x [..., in] of any strides, weight [out, in] and bias [out]; reads nothing but x's own values.

    On CPUs with AMX, oneDNN (up to 3.14) multiplies bfloat16 in tiles of 32 inputs. Where `in` is no multiple of 32 it
    loads the last tile from behind the end of a row and relies on zeros in the weight: a NaN or infinity in the memory
    between the rows of x then becomes a NaN of the output (github.com/uxlfoundation/oneDNN/issues/5717). Rows that have
    others' memory between them are therefore copied.
    """
    if x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.shape[-1] % TILE:
        x = x.contiguous()
    return F.linear(x, weight, bias)


def padded_linear(spec: Any, packed: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The kernel "torch" of a family that packs a dense "weight" [out, >= in]: columns beyond x's width are padding."""
    weight = packed["weight"]
    if weight.shape[1] != x.shape[-1]:
        weight = weight[:, : x.shape[-1]]
    return linear(x, weight, packed.get("bias"))
