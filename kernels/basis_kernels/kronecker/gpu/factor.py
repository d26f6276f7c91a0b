"""One factor, one launch: y[n, (i,j,l)] = sum_k w[i,j,k,l] x[n, (i,k,l)] + bias, each output written once.

x and y may be batch-size-first or -last: strides are passed for n, i, k, l and n, i, j, l. Where l is contiguous in
memory (batch-size-first, d > 1) a program computes BL neighbouring blocks as one batched product, so that every cache
line of x is used whole; otherwise one block. Weights are packed [a, d, c, b].
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"
from __future__ import annotations

from functools import lru_cache

import triton
import triton.language as tl
from torch import Tensor

from basis_kernels.kronecker.gpu import tuning
from basis_kernels.launch.gpu import MOST_SHAPES, Bound, Launcher

LARGEST_SMALL_BLOCK = 64
"""Largest b.c of a factor that is multiplied without tensor cores, which would need sixteenfold padding."""


@triton.jit
def factor_kernel(
    x, w, bias, y, batch, columns, outputs, a, b, c, d,
    x_n, x_i, x_k, x_l, w_g, w_k, w_j, y_n, y_i, y_j, y_l,
    HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BN: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """`columns` and `outputs` are the widths of x and y, beyond which is padding."""
    program = tl.program_id(0)  # tiles of b vary fastest: they read the same x
    tiles_j = tl.cdiv(b, BJ)
    tiles_l = tl.cdiv(d, BL)
    j = program % tiles_j * BJ + tl.arange(0, BJ)
    program = program // tiles_j
    first_l = program % tiles_l * BL
    program = program // tiles_l
    i = program % a
    n = program // a * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    n_long, k_long, i_long = n.to(tl.int64), k.to(tl.int64), i.to(tl.int64)
    step_x = tl.full((), BK, tl.int64) * x_k
    if BL == 1:
        l_long, j_long = first_l.to(tl.int64), j.to(tl.int64)
        at_x = x + i_long * x_i + l_long * x_l + n_long[:, None] * x_n + k_long[None, :] * x_k
        at_w = w + (i * d + first_l) * w_g + k[:, None] * w_k + j[None, :] * w_j
        column = i * c * d + k * d + first_l
        acc = tl.zeros((BN, BJ), dtype=tl.float32)
        for start in range(0, c, BK):
            inside = (start + k) < c
            seen = inside & (column + start * d < columns)
            xv = tl.load(at_x, mask=(n[:, None] < batch) & seen[None, :], other=0.0)
            wv = tl.load(at_w, mask=inside[:, None] & (j[None, :] < b), other=0.0)
            acc = tl.dot(xv, wv, acc, input_precision=PRECISION)
            at_x += step_x
            at_w += BK * w_k
        out = i * b * d + j * d + first_l
        kept = (j < b) & (out < outputs)
        if HAS_BIAS:
            acc += tl.load(bias + out, mask=kept, other=0.0).to(tl.float32)[None, :]
        at_y = y + i_long * y_i + l_long * y_l + n_long[:, None] * y_n + j_long[None, :] * y_j
        tl.store(at_y, acc.to(y.dtype.element_ty), mask=(n[:, None] < batch) & kept[None, :])
    else:
        el = first_l + tl.arange(0, BL)
        at_x = x + i_long * x_i + el[:, None, None] * x_l + n_long[None, :, None] * x_n + k_long[None, None, :] * x_k
        at_w = w + (i * d + el)[:, None, None] * w_g + k[None, :, None] * w_k + j[None, None, :] * w_j  # [BL, BK, BJ]
        column = i * c * d + k[None, :] * d + el[:, None]  # [BL, BK]
        acc = tl.zeros((BL, BN, BJ), dtype=tl.float32)
        for start in range(0, c, BK):
            inside = ((start + k) < c)[None, :] & (el < d)[:, None]
            seen = inside & (column + start * d < columns)
            xv = tl.load(at_x, mask=(n < batch)[None, :, None] & seen[:, None, :], other=0.0)
            wv = tl.load(at_w, mask=inside[:, :, None] & (j < b)[None, None, :], other=0.0)
            acc = tl.dot(xv, wv, acc, input_precision=PRECISION)
            at_x += step_x
            at_w += BK * w_k
        out = i * b * d + j[None, :] * d + el[:, None]  # [BL, BJ]
        kept = (j < b)[None, :] & (el < d)[:, None] & (out < outputs)
        if HAS_BIAS:
            acc += tl.load(bias + out, mask=kept, other=0.0).to(tl.float32)[:, None, :]
        at_y = y + i_long * y_i + el[:, None, None] * y_l + n_long[None, :, None] * y_n + j[None, None, :] * y_j
        tl.store(at_y, acc.to(y.dtype.element_ty), mask=(n < batch)[None, :, None] & kept[:, None, :])


@triton.jit
def small_kernel(
    x, w, bias, y, batch, columns, outputs, a, c, d,
    x_n, x_i, x_k, x_l, w_g, w_k, w_j, y_n, y_i, y_j, y_l,
    HAS_BIAS: tl.constexpr, B: tl.constexpr, CP: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Small blocks: BP of the a.d blocks at once, their CP >= c values of x read once."""
    tiles = tl.cdiv(a * d, BP)
    g = tl.program_id(0) % tiles * BP + tl.arange(0, BP)  # block (i, l)
    n = tl.program_id(0) // tiles * BN + tl.arange(0, BN)
    i, el = g // d, g % d
    k = tl.arange(0, CP)
    there = g < a * d
    column = (i * c * d + el)[:, None] + k[None, :] * d  # [BP, CP]
    inside = there[:, None] & (k < c)[None, :]
    n_long, i_long, l_long = n.to(tl.int64), i.to(tl.int64), el.to(tl.int64)
    at_x = (i_long * x_i + l_long * x_l)[:, None] + k.to(tl.int64)[None, :] * x_k
    xv = tl.load(
        x + n_long[:, None, None] * x_n + at_x[None, :, :],
        mask=(n < batch)[:, None, None] & (inside & (column < columns))[None, :, :],
        other=0.0,
    ).to(tl.float32)  # [BN, BP, CP]
    for j in tl.static_range(B):
        wv = tl.load(w + g[:, None] * w_g + k[None, :] * w_k + j * w_j, mask=inside, other=0.0).to(tl.float32)
        out = i * B * d + j * d + el
        kept = there & (out < outputs)
        acc = tl.sum(xv * wv[None, :, :], axis=2)  # [BN, BP]
        if HAS_BIAS:
            acc += tl.load(bias + out, mask=kept, other=0.0).to(tl.float32)[None, :]
        at_y = i_long * y_i + tl.full((), j, tl.int64) * y_j + l_long * y_l
        tl.store(
            y + n_long[:, None] * y_n + at_y[None, :],
            acc.to(y.dtype.element_ty),
            mask=(n < batch)[:, None] & kept[None, :],
        )


factor_launcher = Launcher(factor_kernel, tuning.FACTOR)
small_launcher = Launcher(small_kernel, tuning.SMALL)


def strides(x: tuple[int, ...], inner: int, d: int, last: bool) -> tuple[int, int, int, int]:
    """Strides along (row, i, k, l) of a matrix with strides x, [batch, a.inner.d] or with `last` [a.inner.d, batch]."""
    step, row = x if last else x[::-1]
    return row, inner * d * step, d * step, step


_Call = tuple[int | None, bool, bool, str, bool]
"""Number of outputs, whether blocks are transposed, whether rows are last, precision, whether there is a bias."""


@lru_cache(maxsize=MOST_SHAPES)
def _planned(
    shape: tuple[int, int], x_strides: tuple[int, int], factor: tuple[int, int, int, int], call: _Call
) -> tuple[tuple[int, int], Bound]:
    """Shape of the result, and the kernel for inputs of that shape and those strides."""
    outputs, transposed, last, precision, has_bias = call
    a, d, c, b = factor
    w_k, w_j = b, 1
    if transposed:
        b, c, w_k, w_j = c, b, 1, b
    columns, batch = shape if last else shape[::-1]
    if outputs is None:
        outputs = a * b * d
    of_y = (outputs, batch) if last else (batch, outputs)
    tail = (*strides(x_strides, c, d, last), b * c, w_k, w_j, *strides((of_y[1], 1), b, d, last))
    if b * c <= LARGEST_SMALL_BLOCK and b <= 16 and c <= 16:
        padded = 1 << (c - 1).bit_length()
        return of_y, small_launcher.bind((batch, columns, outputs, a, c, d, *tail), (has_bias, b, padded))
    return of_y, factor_launcher.bind((batch, columns, outputs, a, b, c, d, *tail), (has_bias, precision))


def multiply(
    x: Tensor,
    w: Tensor,
    *,
    bias: Tensor | None = None,
    outputs: int | None = None,
    transposed: bool = False,
    last: bool = False,
    precision: str = "ieee",
) -> Tensor:
    """y = x K^T [batch, abd] of x [batch, acd], or with `last` y = K x [abd, batch] of x [acd, batch].

    Args:
        x: float16, bfloat16 or float32; fewer columns than acd are padded by zeros.
        w: [a, d, c, b], contiguous, in x's dtype; with `transposed` [a, d, b, c], whose blocks are transposed.
        bias: [outputs], contiguous.
        outputs: number of leading outputs to compute; all abd if None.
        precision: of float32 products: "ieee", "tf32" or "tf32x3" (three tf32 products, nearly exact).
    """
    call = (outputs, transposed, last, precision, bias is not None)
    shape, launch = _planned(x.shape, x.stride(), w.shape, call)
    y = x.new_empty(shape)
    if shape[0] and shape[1]:
        launch(x, w, y if bias is None else bias, y)
    return y
