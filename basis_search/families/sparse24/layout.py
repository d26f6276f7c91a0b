"""The stored form of a 2:4-sparse weight: the two values of each group of four, and where they stand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP, KEPT = 4, 2
PADDED = 8
"""Columns are padded with zeros to a multiple of it, so that a byte holds the positions of two groups."""


def padded(features: int) -> int:
    """Columns of the padded weight."""
    return -(-features // PADDED) * PADDED


def pad(weight: Tensor) -> Tensor:
    """[out, in] with zero columns up to `padded(in)`."""
    return F.pad(weight, (0, padded(weight.shape[1]) - weight.shape[1]))


def largest_two(scores: Tensor) -> Tensor:
    """Positions of the two largest of each group, ascending: scores [..., 4] -> int64 [..., 2]."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    return order[..., :KEPT].sort(dim=-1).values


def compress(weight: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [out, columns], positions [out, columns / 4, 2] -> values [out, columns / 2], index [out, columns / 8].

    A byte of the index holds two groups, the first in its low half; half a byte holds the first position in its low two
    bits and the second in the next two, as sparse tensor cores take them.
    """
    rows, columns = weight.shape
    values = weight.view(rows, columns // GROUP, GROUP).gather(2, positions)
    halves = (positions[..., 0] | positions[..., 1] << 2).view(rows, columns // PADDED, 2)
    return values.reshape(rows, columns // 2), (halves[..., 0] | halves[..., 1] << 4).to(torch.uint8)


def expand(values: Tensor, index: Tensor) -> Tensor:
    """The inverse of `compress`: values and index -> padded weight [out, columns]; differentiable in the values."""
    rows, columns = values.shape[0], values.shape[1] * 2
    shifts = torch.arange(0, 8, 2, device=index.device, dtype=index.dtype)
    positions = (index[..., None] >> shifts & 3).view(rows, columns // GROUP, KEPT).long()
    empty = torch.zeros(rows, columns // GROUP, GROUP, dtype=values.dtype, device=values.device)
    return empty.scatter(2, positions, values.view(rows, columns // GROUP, KEPT)).view(rows, columns)
