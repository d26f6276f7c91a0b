"""Both factors of a Monarch chain in one launch, the intermediate z in registers: y = K_1 (K_2 x) + bias.

K_1 (1, p, qr, m), K_2 (q, rm, h, 1): z[n, (i,s,l)] = sum_h w_2[i,(s,l),h] x[n,(i,h)] and
y[n, (j,l)] = sum_{i,s} w_1[j,(i,s),l] z[n,(i,s,l)] for i < q, s < r, l < m. For BN rows and BL values of l a
program computes z for all (i,s) as q products [BN, BH] x [BH, r BL], permutes it, and computes y as BL products
[BN, qr] x [qr, p].
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"
from __future__ import annotations

from functools import lru_cache

import triton
import triton.language as tl
from torch import Tensor

from basis_kernels.kronecker.gpu import pair_tuning
from basis_kernels.launch.gpu import MOST_SHAPES, Bound, Launcher


@triton.jit
def monarch_kernel(
    x, w_1, w_2, bias, y, batch, columns, outputs, p, q, m, h, x_n, x_f, y_n, y_f,
    HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr, R: tl.constexpr, PP: tl.constexpr, QP: tl.constexpr,
    BN: tl.constexpr, BH: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """x_f, y_f: strides between features. w_1 is [1, m, qr, p], w_2 [q, 1, h, rm], as factors are packed."""
    tiles = tl.cdiv(m, BL)
    first = tl.program_id(0) % tiles * BL
    n = tl.program_id(0) // tiles * BN + tl.arange(0, BN)
    n_long = n.to(tl.int64)
    i = tl.arange(0, QP)
    hs = tl.arange(0, BH)
    out_2 = tl.arange(0, R * BL)  # (s, l): s slow
    s, el_2 = out_2 // BL, first + out_2 % BL
    z = tl.zeros((QP, BN, R * BL), dtype=tl.float32)
    for start in range(0, h, BH):
        k = start + hs
        feature = i[:, None] * h + k[None, :]  # [QP, BH]
        seen = (i < q)[:, None] & (k < h)[None, :]
        xv = tl.load(
            x + n_long[None, :, None] * x_n + feature.to(tl.int64)[:, None, :] * x_f,
            mask=(n < batch)[None, :, None] & (seen & (feature < columns))[:, None, :],
            other=0.0,
        )  # [QP, BN, BH]
        wv = tl.load(
            w_2 + feature[:, :, None] * (R * m) + (s * m + el_2)[None, None, :],
            mask=seen[:, :, None] & (el_2 < m)[None, None, :],
            other=0.0,
        )  # [QP, BH, R BL]
        z = tl.dot(xv, wv, z, input_precision=PRECISION)
    turned = tl.permute(tl.reshape(z, (QP, BN, R, BL)), (3, 1, 0, 2))  # [BL, BN, QP, R]
    zt = tl.reshape(turned, (BL, BN, QP * R)).to(x.dtype.element_ty)
    el = first + tl.arange(0, BL)
    j = tl.arange(0, PP)
    c = tl.arange(0, QP * R)
    wv = tl.load(
        w_1 + el[:, None, None] * (q * R * p) + c[None, :, None] * p + j[None, None, :],
        mask=(el < m)[:, None, None] & (c < q * R)[None, :, None] & (j < p)[None, None, :],
        other=0.0,
    )  # [BL, QP R, PP]
    acc = tl.dot(zt, wv, input_precision=PRECISION)  # [BL, BN, PP]
    out = j[None, :] * m + el[:, None]  # [BL, PP]
    kept = (j < p)[None, :] & (el < m)[:, None] & (out < outputs)
    if HAS_BIAS:
        acc += tl.load(bias + out, mask=kept, other=0.0).to(tl.float32)[:, None, :]
    tl.store(
        y + n_long[None, :, None] * y_n + out.to(tl.int64)[:, None, :] * y_f,
        acc.to(y.dtype.element_ty),
        mask=(n < batch)[None, :, None] & kept[:, None, :],
    )


launcher = Launcher(monarch_kernel, pair_tuning.MONARCH)


_Call = tuple[int | None, bool, str, bool]
"""Number of outputs, whether rows are last, precision, whether there is a bias."""
Factor = tuple[int, int, int, int]


@lru_cache(maxsize=MOST_SHAPES)
def _planned(
    shape: tuple[int, int], strides: tuple[int, int], left: Factor, right: Factor, call: _Call
) -> tuple[tuple[int, int], Bound]:
    """Shape of the result, and the kernel for inputs of that shape and those strides."""
    outputs, last, precision, has_bias = call
    (_, m, c, p), (q, _, h, _) = left, right
    r = c // q
    columns, batch = shape if last else shape[::-1]
    if outputs is None:
        outputs = p * m
    of_y = (outputs, batch) if last else (batch, outputs)
    of_x, y_strides = (strides, (batch, 1)) if last else (strides[::-1], (1, outputs))
    (x_f, x_n), (y_f, y_n) = of_x, y_strides
    sizes = (batch, columns, outputs, p, q, m, h, x_n, x_f, y_n, y_f)
    constants = (has_bias, precision, r, pair_tuning.power(p), pair_tuning.blocks_of_z(q, r))
    return of_y, launcher.bind(sizes, constants)


def monarch(
    x: Tensor,
    w_1: Tensor,
    w_2: Tensor,
    *,
    bias: Tensor | None = None,
    outputs: int | None = None,
    last: bool = False,
    precision: str = "ieee",
) -> Tensor:
    """y = x (K_1 K_2)^T [batch, outputs] of x [batch, qh] (both transposed with `last`); requires `pair_tuning.fits`.

    w_1 is [1, m, qr, p], w_2 [q, 1, h, rm], contiguous, in x's dtype; bias [outputs], contiguous.
    """
    call = (outputs, last, precision, bias is not None)
    shape, launch = _planned(x.shape, x.stride(), w_1.shape, w_2.shape, call)
    y = x.new_empty(shape)
    if shape[0] and shape[1]:
        launch(x, w_1, w_2, y if bias is None else bias, y)
    return y
