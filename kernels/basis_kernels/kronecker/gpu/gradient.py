"""The weights' gradient of one factor: dw[i,j,k,l] = sum_n x[n,(i,k,l)] dy[n,(i,j,l)], packed [a, d, c, b].

The batch is divided into `splits` parts, each summed by separate programs; the partial sums are then added in a fixed
order, so that gradients are deterministic.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from basis_kernels.kronecker.gpu import tuning
from basis_kernels.kronecker.gpu.factor import strides
from basis_kernels.launch.gpu import Launcher


@triton.jit
def gradient_kernel(
    x, dy, dw, batch, a, b, c, d, splits, share,
    x_n, x_i, x_k, x_l, y_n, y_i, y_j, y_l,
    PRECISION: tl.constexpr, BN: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Rows part . share to (part + 1) . share of the batch; dw is [splits, a, d, c, b], float32."""
    program = tl.program_id(0)
    tiles_j = tl.cdiv(b, BJ)
    tiles_k = tl.cdiv(c, BK)
    tiles_l = tl.cdiv(d, BL)
    j = program % tiles_j * BJ + tl.arange(0, BJ)
    program = program // tiles_j
    k = program % tiles_k * BK + tl.arange(0, BK)
    program = program // tiles_k
    first_l = program % tiles_l * BL
    program = program // tiles_l
    i = program % a
    part = program // a
    end = tl.minimum(batch, (part + 1) * share)
    n = tl.arange(0, BN)
    to = dw + part.to(tl.int64) * a * d * c * b
    i_long, k_long, j_long = i.to(tl.int64), k.to(tl.int64), j.to(tl.int64)
    if BL == 1:
        l_long = first_l.to(tl.int64)
        at_x = x + i_long * x_i + l_long * x_l + k_long[:, None] * x_k
        at_y = dy + i_long * y_i + l_long * y_l + j_long[None, :] * y_j
        acc = tl.zeros((BK, BJ), dtype=tl.float32)
        for start in range(part * share, end, BN):
            row = (start + n).to(tl.int64)
            xv = tl.load(at_x + row[None, :] * x_n, mask=(k[:, None] < c) & (row[None, :] < end), other=0.0)
            yv = tl.load(at_y + row[:, None] * y_n, mask=(j[None, :] < b) & (row[:, None] < end), other=0.0)
            acc = tl.dot(xv, yv, acc, input_precision=PRECISION)
        at = (i * d + first_l) * c * b + k[:, None] * b + j[None, :]
        tl.store(to + at, acc, mask=(k[:, None] < c) & (j[None, :] < b))
    else:
        el = first_l + tl.arange(0, BL)
        at_x = x + i_long * x_i + el[:, None, None] * x_l + k_long[None, :, None] * x_k  # [BL, BK, 1]
        at_y = dy + i_long * y_i + el[:, None, None] * y_l + j_long[None, None, :] * y_j  # [BL, 1, BJ]
        of_x = (el < d)[:, None, None] & (k < c)[None, :, None]
        of_y = (el < d)[:, None, None] & (j < b)[None, None, :]
        acc = tl.zeros((BL, BK, BJ), dtype=tl.float32)
        for start in range(part * share, end, BN):
            row = (start + n).to(tl.int64)
            xv = tl.load(at_x + row[None, None, :] * x_n, mask=of_x & (row < end)[None, None, :], other=0.0)
            yv = tl.load(at_y + row[None, :, None] * y_n, mask=of_y & (row < end)[None, :, None], other=0.0)
            acc = tl.dot(xv, yv, acc, input_precision=PRECISION)
        at = (i * d + el)[:, None, None] * c * b + k[None, :, None] * b + j[None, None, :]
        tl.store(to + at, acc, mask=of_x & (j < b)[None, None, :])


launcher = Launcher(gradient_kernel, tuning.GRADIENT)


def weight_gradient(
    x: Tensor, dy: Tensor, shape: tuple[int, int, int, int], *, last: bool = False, precision: str = "ieee"
) -> Tensor:
    """dw [a, d, c, b], float32, from x [batch, acd] and dy [batch, abd] (both transposed with `last`)."""
    a, b, c, d = shape
    batch = x.shape[1] if last else x.shape[0]
    if batch == 0 or a * b * c * d == 0:
        return x.new_zeros((a, d, c, b), dtype=torch.float32)
    # Enough programs to fill a large GPU, each with at least 512 rows to sum.
    programs = a * triton.cdiv(d, 16) * triton.cdiv(b, 64) * triton.cdiv(c, 64)
    splits = max(1, min(triton.cdiv(batch, 512), triton.cdiv(512, programs)))
    share = triton.cdiv(triton.cdiv(batch, splits), 64) * 64
    splits = triton.cdiv(batch, share)
    dw = x.new_empty((splits, a, d, c, b), dtype=torch.float32)
    sizes = (batch, a, b, c, d, splits, share, *strides(x.stride(), c, d, last), *strides(dy.stride(), b, d, last))
    launcher.bind(sizes, (precision,))(x, dy, dw)
    return dw[0] if splits == 1 else dw.sum(0)
