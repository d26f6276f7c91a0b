"""Encode fused with the tiling permutation: z_l[I, K] = sum_a E[l, a] x[I t + i, K t + p], a = i t + p."""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"
from __future__ import annotations

from functools import lru_cache

import triton
import triton.language as tl
from torch import Tensor

from basis_kernels.launch.gpu import MOST_SHAPES, Bound, Launcher
from basis_kernels.stl.gpu import tuning


@triton.jit
def encode_kernel(
    x, basis, z, rows, columns, N, K, x_row, x_column, R,
    T: tl.constexpr, RP: tl.constexpr, AP: tl.constexpr, PRECISION: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """One program: BT neighbouring tiles of one tile row, all R values."""
    wide = tl.cdiv(K, BT)
    row_of_tiles = (tl.program_id(0) // wide).to(tl.int64)
    tile = tl.program_id(0) % wide * BT + tl.arange(0, BT)
    a = tl.arange(0, AP)
    row = row_of_tiles * T + a // T
    column = tile[None, :] * T + (a % T)[:, None]  # [AP, BT]
    inside = ((a < T * T) & (row < rows))[:, None] & (column < columns)
    values = tl.load(x + row[:, None] * x_row + column.to(tl.int64) * x_column, mask=inside, other=0.0)
    term = tl.arange(0, RP)
    kept = (term < R)[:, None]
    matrix = tl.load(basis + term[:, None] * (T * T) + a[None, :], mask=kept & (a < T * T)[None, :], other=0.0)
    encoded = tl.dot(matrix, values, input_precision=PRECISION)  # [RP, BT]
    plane = tl.cast(N, tl.int64) * K
    at = z + term.to(tl.int64)[:, None] * plane + row_of_tiles * K + tile[None, :]
    tl.store(at, encoded.to(z.dtype.element_ty), mask=kept & (tile < K)[None, :])


launcher = Launcher(encode_kernel, tuning.ENCODE)


@lru_cache(maxsize=MOST_SHAPES)
def _planned(
    shape: tuple[int, int], strides: tuple[int, int], r: int, tile: int, precision: str
) -> tuple[tuple[int, int, int], Bound]:
    """Shape of the result, and the kernel for inputs of that shape and those strides."""
    rows, columns = shape
    N, K = -(-rows // tile), -(-columns // tile)
    constants = (tile, tuning.at_least_16(r), tuning.at_least_16(tile * tile), precision)
    return (r, N, K), launcher.bind((rows, columns, N, K, *strides, r), constants)


def encode(x: Tensor, basis: Tensor, tile: int, precision: str = "ieee") -> Tensor:
    """x [n, k] in float16, bfloat16 or float32, basis [r, t*t] in the same dtype -> z [r, ceil(n/t), ceil(k/t)].

    `precision` of float32 products: "ieee" or "tf32".
    """
    shape, launch = _planned(x.shape, x.stride(), basis.shape[0], tile, precision)
    z = x.new_empty(shape)
    if shape[1] and shape[2]:
        launch(x, basis if basis.is_contiguous() else basis.contiguous(), z)
    return z
