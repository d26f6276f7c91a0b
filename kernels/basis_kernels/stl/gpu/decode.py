"""Decode fused with the inverse permutation: y[I t + i, J t + q] = sum_l D[c, l] s_l[I, J] + b, c = i t + q."""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from basis_kernels.stl.gpu import tuning


@triton.autotune(
    list(tuning.TILES),
    key=["bucket", "M", "R", "T", "PRECISION"],
    prune_configs_by={"early_config_prune": tuning.prune_tiles},
)
@triton.jit
def decode_kernel(
    s, basis, bias, y, rows, columns, N, M, bucket, R,
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


def decode(
    s: Tensor, basis: Tensor, tile: int, rows: int, columns: int, bias: Tensor | None = None, precision: str = "ieee"
) -> Tensor:
    """s [r, n/t, m/t], basis [t*t, r] -> y [rows, columns], plus the bias [columns] if given."""
    s = s.contiguous()
    r, N, M = s.shape
    y = s.new_empty(rows, columns)
    if y.numel() == 0:
        return y
    with torch.cuda.device(s.device) if s.is_cuda else torch.device(s.device):
        decode_kernel[lambda meta: (N * triton.cdiv(M, meta["BT"]),)](
            s, basis.contiguous(), bias, y, rows, columns, N, M, tuning.bucket(rows), r, HAS_BIAS=bias is not None,
            T=tile, RP=tuning.at_least_16(r), AP=tuning.at_least_16(tile * tile), PRECISION=precision,
        )  # fmt: skip
    return y
