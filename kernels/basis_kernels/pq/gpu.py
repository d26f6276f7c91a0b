"""Triton kernels of product quantisation: codes by four compares, y = scale . sum_c T[c, code_c] + offset."""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"
from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from basis_kernels.launch.gpu import MOST_SHAPES, Bound, Launcher
from basis_kernels.pq import tuning

FEW_ROWS = 64
"""Up to this many rows only the indexed entries are read; above, whole tables pass through shared memory."""


@triton.jit
def encode_kernel(
    x, columns, thresholds, codes, N, C, row_stride, column_stride, BN: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    """One program: BN rows, BC codebooks. NaN exceeds no threshold, so it goes left."""
    row = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = (row < N)[:, None] & (c < C)[None, :]
    node = tl.zeros((BN, BC), tl.int32)
    for t in tl.static_range(4):
        column = tl.load(columns + 4 * c + t, mask=c < C, other=0).to(tl.int64)
        at = x + row[:, None] * row_stride + column[None, :] * column_stride
        value = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(thresholds + 15 * c[None, :] + (2**t - 1) + node, mask=inside, other=0.0)
        node = 2 * node + (value > v).to(tl.int32)
    tl.store(codes + row[:, None] * C + c[None, :], node.to(tl.uint8), mask=inside)


@triton.jit
def sum_few_kernel(
    codes, table, scale, offset, y, N, C, M, INTEGER: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr
):  # fmt: skip
    """One program: BN rows, BM outputs; reads C entries per row and output. Integer sums are exact."""
    row = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    inside = (row < N)[:, None] & (m < M)[None, :]
    total = tl.zeros((BN, BM), tl.int32 if INTEGER else tl.float32)
    for c in range(C):
        code = tl.load(codes + row * C + c, mask=row < N, other=0).to(tl.int64)
        at = table + (tl.cast(c, tl.int64) * 16 + code)[:, None] * M + m[None, :]
        total += tl.load(at, mask=inside, other=0).to(total.dtype)
    _finish(total, scale, offset, y, row, m, inside, M)


@triton.jit
def sum_many_kernel(
    codes, table, scale, offset, y, N, C, M, INTEGER: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr
):  # fmt: skip
    """Like `sum_few_kernel`, but a codebook's 16 x BM entries are read once for all BN rows and looked up on chip."""
    row = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    inside = (row < N)[:, None] & (m < M)[None, :]
    k = tl.arange(0, 16)
    total = tl.zeros((BN, BM), tl.int32 if INTEGER else tl.float32)
    for c in range(C):
        code = tl.load(codes + row * C + c, mask=row < N, other=0).to(tl.int32)
        at = table + (tl.cast(c, tl.int64) * 16 + k)[:, None] * M + m[None, :]
        entries = tl.load(at, mask=(m < M)[None, :] & (k < 16)[:, None], other=0).to(total.dtype)  # [16, BM]
        total += tl.gather(entries, tl.broadcast_to(code[:, None], (BN, BM)), 0)
    _finish(total, scale, offset, y, row, m, inside, M)


@triton.jit
def _finish(total, scale, offset, y, row, m, inside, M):
    a = tl.load(scale + m, mask=m < M, other=0.0)
    b = tl.load(offset + m, mask=m < M, other=0.0)
    result = total.to(tl.float32) * a[None, :] + b[None, :]
    tl.store(y + row[:, None] * M + m[None, :], result.to(y.dtype.element_ty), mask=inside)


encode_launcher = Launcher(encode_kernel, tuning.ENCODE)
few_launcher = Launcher(sum_few_kernel, tuning.FEW)
many_launcher = Launcher(sum_many_kernel, tuning.MANY)


@lru_cache(maxsize=MOST_SHAPES)
def _planned_codes(rows: int, codebooks: int, strides: tuple[int, int]) -> Bound:
    return encode_launcher.bind((rows, codebooks, *strides), ())


@lru_cache(maxsize=MOST_SHAPES)
def _planned_sums(rows: int, table: tuple[int, int, int], integer: bool) -> Bound:
    launcher = few_launcher if rows <= FEW_ROWS else many_launcher
    return launcher.bind((rows, table[0], table[2]), (integer,))


def encode(x: Tensor, columns: Tensor, thresholds: Tensor) -> Tensor:
    """Rows x [n, in], any strides, to codes [n, C] uint8; columns [C, 4] int32, thresholds [C, 15] float32."""
    n, c = x.shape[0], columns.shape[0]
    codes = x.new_empty((n, c), dtype=torch.uint8)
    if n:
        _planned_codes(n, c, x.stride())(x, columns, thresholds, codes)
    return codes


def table_sum(codes: Tensor, table: Tensor, scale: Tensor, offset: Tensor, dtype: torch.dtype) -> Tensor:
    """codes [n, C] uint8 and tables [C, 16, out], uint8 or float32, to y [n, out]; scale and offset [out] float32."""
    n, shape = codes.shape[0], table.shape
    y = codes.new_empty((n, shape[2]), dtype=dtype)
    if n:
        _planned_sums(n, shape, table.dtype == torch.uint8)(codes, table, scale, offset, y)
    return y
