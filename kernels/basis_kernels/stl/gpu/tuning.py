"""Block sizes to time when tuning: only those whose sums fit in registers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton

TILES = tuple(triton.Config({"BT": tiles}, num_warps=warps) for tiles, warps in ((256, 8), (128, 8), (128, 4), (64, 4)))
"""Tiles of one tile row that a program encodes or decodes."""

GRADIENT = tuple(
    triton.Config({"BT": tiles}, num_warps=4, num_stages=stages) for tiles, stages in ((128, 2), (64, 3), (32, 2))
)

FUSED = tuple(
    triton.Config({"BM": m, "BN": n, "BK": k}, num_warps=warps, num_stages=stages)
    for m, n, k, warps, stages in (
        (64, 32, 64, 8, 4), (32, 64, 64, 8, 4), (64, 32, 64, 8, 3), (64, 32, 32, 8, 4), (32, 32, 64, 4, 4),
        (32, 32, 32, 4, 4), (16, 64, 64, 4, 4), (64, 16, 64, 4, 4), (128, 64, 64, 8, 3), (64, 64, 64, 8, 3),
        (128, 64, 32, 8, 3), (128, 128, 32, 8, 3), (16, 32, 32, 4, 3), (16, 16, 16, 4, 2),
    )
)  # fmt: skip

SUMS_PER_THREAD = 128
"""Float32 sums per thread besides the current product; more would spill."""


def prune_tiles(configs: list[Any], arguments: Mapping[str, Any], **kwargs: Any) -> list[Any]:
    """Drop wide blocks of float32 tiles other than 4 x 4: they need the registers of more threads."""
    named = {**arguments, **kwargs}
    wide = _tensor(named).element_size() == 4 and named["T"] != 4
    return _one_if_interpreted([c for c in configs if not wide or c.kwargs["BT"] <= 16 * c.num_warps], named)


def prune_fused(configs: list[Any], arguments: Mapping[str, Any], **kwargs: Any) -> list[Any]:
    """Configurations whose t*t decoded sums fit: with tile 4 at most BM BN = 2048 on 8 warps."""
    named = {**arguments, **kwargs}
    deepest = 32 if _tensor(named).element_size() == 4 else 64
    kept = []
    for config in configs:
        m, n, k = (config.kwargs[name] for name in ("BM", "BN", "BK"))
        if named["T"] ** 2 * m * n <= SUMS_PER_THREAD * 32 * config.num_warps and k <= deepest:
            kept.append(config)
    return _one_if_interpreted(kept, named)


def _one_if_interpreted(configs: list[Any], arguments: Mapping[str, Any]) -> list[Any]:
    """In the interpreter, which cannot be timed, only the smallest blocks: they have the most edges to test."""
    return configs[-1:] if _tensor(arguments).device.type == "cpu" else configs


def _tensor(arguments: Mapping[str, Any]) -> torch.Tensor:
    return next(value for value in arguments.values() if isinstance(value, torch.Tensor))


def at_least_16(count: int) -> int:
    """The next power of two from 16 on, the smallest side of a matrix instruction."""
    return max(16, bucket(count))


def bucket(count: int) -> int:
    """The next power of two: blocks are tuned once for each."""
    return 1 << max(0, count - 1).bit_length()
