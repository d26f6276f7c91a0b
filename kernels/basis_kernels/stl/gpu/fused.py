"""Grouped matmul over r with the decoder in its epilogue: y_c[I, J] = sum_l D[c, l] sum_K z_l[I, K] w_l[K, J] + b.

A program holds the t*t decoded sums of BM x BN tiles in registers, computes the r products one after another, and adds
D[c, l] times each to every sum: the products never reach memory.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"
from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from basis_kernels.launch.configuration import Problem
from basis_kernels.launch.gpu import Launcher
from basis_kernels.stl.gpu import tuning


@triton.jit
def _store(y, lines, row, column, rows, columns, bias, HAS_BIAS: tl.constexpr):
    if HAS_BIAS:
        lines += tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
    to = y + row.to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(to, lines.to(y.dtype.element_ty), mask=(row < rows)[:, None] & (column < columns)[None, :])


@triton.jit
def fused_kernel(
    z, w, basis, bias, y, rows, columns, N, K, M, w_l, w_k, w_j, R,
    HAS_BIAS: tl.constexpr, T: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """z [R, N, K] and y contiguous; w [R, K, M] with any strides, so that a transpose needs no copy."""
    # Programs in groups of GROUP block rows: concurrent programs share blocks of z and w in L2.
    high, wide = tl.cdiv(N, BM), tl.cdiv(M, BN)
    program = tl.program_id(0)
    first = program // (GROUP * wide) * GROUP
    here = min(high - first, GROUP)
    row_block = first + program % (GROUP * wide) % here
    column_block = program % (GROUP * wide) // here
    i, j, k = row_block * BM + tl.arange(0, BM), column_block * BN + tl.arange(0, BN), tl.arange(0, BK)
    sums = (tl.zeros((BM, BN), dtype=tl.float32),) * (T * T)
    for term in range(R):
        at_z = z + tl.cast(term, tl.int64) * N * K + i.to(tl.int64)[:, None] * K + k[None, :]
        at_w = w + tl.cast(term, tl.int64) * w_l + k.to(tl.int64)[:, None] * w_k + j.to(tl.int64)[None, :] * w_j
        product = tl.zeros((BM, BN), dtype=tl.float32)
        for start in range(0, K, BK):
            z_block = tl.load(at_z, mask=(i < N)[:, None] & (start + k < K)[None, :], other=0.0)
            w_block = tl.load(at_w, mask=(start + k < K)[:, None] & (j < M)[None, :], other=0.0)
            product = tl.dot(z_block, w_block, product, input_precision=PRECISION)
            at_z += BK
            at_w += BK * tl.cast(w_k, tl.int64)
        added = ()
        for c in tl.static_range(T * T):
            added += (sums[c] + tl.load(basis + c * R + term).to(tl.float32) * product,)  # type: ignore[assignment]
        sums = added
    for t in tl.static_range(T):
        row = i * T + t
        if T == 4:
            even, odd = tl.join(sums[4 * t], sums[4 * t + 2]), tl.join(sums[4 * t + 1], sums[4 * t + 3])
            lines = tl.reshape(tl.join(even, odd), (BM, 4 * BN))
            column = column_block * BN * 4 + tl.arange(0, 4 * BN)
            _store(y, lines, row, column, rows, columns, bias, HAS_BIAS)
        elif T == 2:
            lines = tl.reshape(tl.join(sums[2 * t], sums[2 * t + 1]), (BM, 2 * BN))
            column = column_block * BN * 2 + tl.arange(0, 2 * BN)
            _store(y, lines, row, column, rows, columns, bias, HAS_BIAS)
        else:
            for q in tl.static_range(T):
                _store(y, sums[T * t + q], row, j * T + q, rows, columns, bias, HAS_BIAS)


launcher = Launcher(fused_kernel, tuning.FUSED)


def multiply_decode(
    z: Tensor,
    w: Tensor,
    basis: Tensor,
    tile: int,
    rows: int,
    columns: int,
    bias: Tensor | None = None,
    precision: str = "ieee",
) -> Tensor:
    """z [r, n/t, k/t], w [r, k/t, m/t] (any strides), basis [t*t, r] -> y [rows, columns]."""
    z = z if z.is_contiguous() else z.contiguous()
    r, N, K = z.shape
    y = z.new_empty((rows, columns))
    if rows and columns:
        basis = basis if basis.is_contiguous() else basis.contiguous()
        sizes = (rows, columns, N, K, w.shape[2], *w.stride(), r)
        launch = launcher.bind(sizes, (bias is not None, tile, precision))
        launch(z, w, basis, basis if bias is None else bias, y)
    return y


@lru_cache(maxsize=1024)
def wins(device: torch.device, dtype: torch.dtype, precision: str, tile: int, sizes: tuple[int, int, int, int]) -> bool:
    """Whether a tuning file says that one launch is faster than a product and `decode` at a near (rows, K, M, R)."""
    values = dict(zip(("rows", "K", "M", "R"), sizes, strict=True)) | {"T": tile, "PRECISION": precision}
    problem = Problem(str(dtype).removeprefix("torch."), dtype.itemsize, values)
    return launcher.beats_other(device, problem)
