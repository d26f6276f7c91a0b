"""Gradient of a basis: G[l, a] = sum over tiles of z_l[I, K] x[I t + i, K t + p], a = i t + p."""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from basis_kernels.launch.gpu import Launcher
from basis_kernels.stl.gpu import tuning


@triton.jit
def gradient_kernel(
    z, x, partial, rows, columns, N, K, x_row, x_column, R,
    T: tl.constexpr, RP: tl.constexpr, AP: tl.constexpr, PRECISION: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """One program: every num_programs-th tile row."""
    term, a = tl.arange(0, RP), tl.arange(0, AP)
    plane = tl.cast(N, tl.int64) * K
    total = tl.zeros((RP, AP), dtype=tl.float32)
    for tiles in range(tl.program_id(0), N, tl.num_programs(0)):
        row_of_tiles = tl.cast(tiles, tl.int64)
        row = row_of_tiles * T + a // T
        for first in range(0, K, BT):
            tile = first + tl.arange(0, BT)
            at = z + term.to(tl.int64)[:, None] * plane + row_of_tiles * K + tile[None, :]
            left = tl.load(at, mask=(term < R)[:, None] & (tile < K)[None, :], other=0.0)  # [RP, BT]
            column = tile[:, None] * T + (a % T)[None, :]  # [BT, AP]
            inside = ((a < T * T) & (row < rows))[None, :] & (column < columns)
            right = tl.load(x + row[None, :] * x_row + column.to(tl.int64) * x_column, mask=inside, other=0.0)
            total = tl.dot(left, right, total, input_precision=PRECISION)
    at = partial + tl.program_id(0) * RP * AP + term[:, None] * AP + a[None, :]
    tl.store(at, total)


launcher = Launcher(gradient_kernel, tuning.GRADIENT)


def basis_gradient(z: Tensor, x: Tensor, tile: int, precision: str = "ieee") -> Tensor:
    """z [r, n/t, k/t] and x [n, k] in one dtype -> [r, t*t], float32."""
    z = z if z.is_contiguous() else z.contiguous()
    r, N, K = z.shape
    if z.numel() == 0:
        return z.new_zeros(r, tile * tile, dtype=torch.float32)
    RP, AP = tuning.at_least_16(r), tuning.at_least_16(tile * tile)
    partial = torch.empty((min(tuning.MOST_PROGRAMS, N), RP, AP), dtype=torch.float32, device=z.device)
    launcher.bind((*x.shape, N, K, *x.stride(), r), (tile, RP, AP, precision))(z, x, partial)
    return partial.sum(dim=0)[:r, : tile * tile]
