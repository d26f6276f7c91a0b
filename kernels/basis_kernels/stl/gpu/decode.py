"""Decode fused with the inverse permutation: y[I t + i, J t + q] = sum_l D[c, l] s_l[I, J] + b, c = i t + q."""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"
from __future__ import annotations

from functools import lru_cache

import triton
import triton.language as tl
from torch import Tensor

from basis_kernels.launch.gpu import MOST_SHAPES, Bound, Launcher
from basis_kernels.stl.gpu import tuning


@triton.jit
def decode_kernel(
    s, basis, bias, y, rows, columns, N, M, R,
    HAS_BIAS: tl.constexpr, T: tl.constexpr, RP: tl.constexpr, AP: tl.constexpr, PRECISION: tl.constexpr,
    BT: tl.constexpr,
):  # fmt: skip
    """One program: all values of BT neighbouring tiles of one tile row; y is contiguous."""
    wide = tl.cdiv(M, BT)
    row_of_tiles = (tl.program_id(0) // wide).to(tl.int64)
    first = tl.program_id(0) % wide * BT
    tile = first + tl.arange(0, BT)
    term = tl.arange(0, RP)
    plane = tl.cast(N, tl.int64) * M
    at = s + term.to(tl.int64)[:, None] * plane + row_of_tiles * M + tile[None, :]
    products = tl.load(at, mask=(term < R)[:, None] & (tile < M)[None, :], other=0.0)  # [RP, BT]
    c = tl.arange(0, AP)
    matrix = tl.load(basis + c[:, None] * R + term[None, :], mask=(c < T * T)[:, None] & (term < R)[None, :], other=0.0)
    decoded = tl.dot(matrix, products, input_precision=PRECISION)  # [AP, BT]
    if T == 4:
        # Reshape to rows of whole tile lines, so that stores are contiguous.
        lines = tl.reshape(tl.permute(tl.reshape(decoded, (T, T, BT)), (0, 2, 1)), (T, BT * T))
        row = row_of_tiles * T + tl.arange(0, T)
        column = first * T + tl.arange(0, BT * T)
        if HAS_BIAS:
            lines += tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
        to = y + row[:, None] * columns + column[None, :]
        tl.store(to, lines.to(y.dtype.element_ty), mask=(row < rows)[:, None] & (column < columns)[None, :])
    else:
        row = row_of_tiles * T + c // T
        column = tile[None, :] * T + (c % T)[:, None]  # [AP, BT]
        if HAS_BIAS:
            decoded += tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)
        inside = ((c < T * T) & (row < rows))[:, None] & (column < columns)
        tl.store(y + row[:, None] * columns + column, decoded.to(y.dtype.element_ty), mask=inside)


launcher = Launcher(decode_kernel, tuning.DECODE)


@lru_cache(maxsize=MOST_SHAPES)
def _planned(shape: tuple[int, int, int], rows: int, columns: int, tile: int, constants: tuple[bool, str]) -> Bound:
    """The kernel for products of that shape; `constants`: whether there is a bias, and the precision."""
    (r, N, M), (has_bias, precision) = shape, constants
    padded = (tuning.at_least_16(r), tuning.at_least_16(tile * tile))
    return launcher.bind((rows, columns, N, M, r), (has_bias, tile, *padded, precision))


def decode(
    s: Tensor, basis: Tensor, tile: int, rows: int, columns: int, bias: Tensor | None = None, precision: str = "ieee"
) -> Tensor:
    """s [r, n/t, m/t], basis [t*t, r] -> y [rows, columns], plus the bias [columns], contiguous, if given."""
    launch = _planned(s.shape, rows, columns, tile, (bias is not None, precision))
    y = s.new_empty((rows, columns))
    if rows and columns:
        s = s if s.is_contiguous() else s.contiguous()
        basis = basis if basis.is_contiguous() else basis.contiguous()
        launch(s, basis, basis if bias is None else bias, y)
    return y
