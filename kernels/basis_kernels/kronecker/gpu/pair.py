"""Both factors of a Monarch chain in one launch, the intermediate z in registers: y = K_1 (K_2 x) + bias.

K_1 (1, p, qr, m), K_2 (q, rm, h, 1): z[n, (i,s,l)] = sum_h w_2[i,(s,l),h] x[n,(i,h)] and
y[n, (j,l)] = sum_{i,s} w_1[j,(i,s),l] z[n,(i,s,l)] for i < q, s < r, l < m. For BN rows and BL values of l a
program computes z for all (i,s) as q products [BN, BH] x [BH, r BL], permutes it, and computes y as BL products
[BN, qr] x [qr, p].
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"
from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from basis_kernels.kronecker.gpu.factor import current

CONFIGS = tuple(
    triton.Config({"BN": n, "BH": h, "BL": el}, num_warps=warps, num_stages=stages)
    for n, h, el, warps, stages in (
        (32, 32, 16, 8, 2), (32, 16, 16, 8, 2), (16, 32, 16, 8, 2), (16, 16, 16, 4, 2), (64, 16, 16, 16, 2),
        (16, 64, 16, 8, 2), (16, 32, 32, 8, 2), (16, 16, 16, 8, 1),
    )
)  # fmt: skip


def _power(n: int) -> int:
    return max(16, 1 << max(0, n - 1).bit_length())


def _held(config: Any, q: int, r: int, p: int) -> float:
    """Accumulators per thread: z for all (i,s) and y for all j."""
    n, el = config.kwargs["BN"], config.kwargs["BL"]
    qp, pp = 1 << max(0, q - 1).bit_length(), _power(p)
    return float((max(qp, 16 // r) * r + pp) * n * el / (32 * config.num_warps))


def _worth(config: Any, q: int, r: int, p: int, size: int, precision: str) -> bool:
    tile = config.kwargs
    staged = max(1, config.num_stages) * max(1, q) * tile["BH"] * (tile["BN"] + r * tile["BL"]) * size
    turned = tile["BL"] * (tile["BN"] * max(16, q * r) + max(16, q * r) * _power(p)) * size
    held = 128 if size == 2 or precision == "tf32" else 64  # the rest is for operands
    return _held(config, q, r, p) <= held and max(staged, turned) <= 160 << 10


def prune(configs: list[Any], arguments: dict[str, Any], **kwargs: Any) -> list[Any]:
    """Configurations that fit on chip; only the smallest in the interpreter, which cannot be timed."""
    arguments = {**arguments, **kwargs}
    x = arguments["x"]
    kept = [
        f
        for f in configs
        if _worth(f, arguments["q"], arguments["R"], arguments["p"], x.element_size(), arguments["PRECISION"])
    ]
    return kept[-1:] if x.device.type == "cpu" else kept


def fits(left: tuple[int, int, int, int], right: tuple[int, int, int, int], size: int, precision: str = "ieee") -> bool:
    """Whether patterns (1,p,qr,m), (q,rm,h,1) with values of `size` bytes fit in one launch."""
    (a, p, c, m), (q, b, _, d) = left, right
    if a != 1 or d != 1 or c % q or b != c // q * m:
        return False
    r = c // q
    return r & (r - 1) == 0 and r <= 16 and q * r >= 8 and any(_worth(f, q, r, p, size, precision) for f in CONFIGS)


@triton.autotune(
    list(CONFIGS), key=["rows", "p", "q", "m", "h", "R", "PRECISION"], prune_configs_by={"early_config_prune": prune}
)
@triton.jit
def monarch_kernel(
    x, w_1, w_2, bias, y, batch, rows, columns, outputs, p, q, m, h, x_n, x_f, y_n, y_f,
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
        acc += tl.load(bias + out, mask=kept, other=0.0)[:, None, :]
    tl.store(
        y + n_long[None, :, None] * y_n + out.to(tl.int64)[:, None, :] * y_f,
        acc.to(y.dtype.element_ty),
        mask=(n < batch)[None, :, None] & kept[:, None, :],
    )


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
    """y = x (K_1 K_2)^T [batch, outputs] of x [batch, qh] (both transposed with `last`); requires `fits`.

    w_1 is [1, m, qr, p], w_2 [q, 1, h, rm], contiguous, in x's dtype; bias [outputs], float32.
    """
    m, p = w_1.shape[1], w_1.shape[3]
    q, h = w_2.shape[0], w_2.shape[2]
    r = w_1.shape[2] // q
    batch, columns = (x.shape[1], x.shape[0]) if last else (x.shape[0], x.shape[1])
    outputs = p * m if outputs is None else outputs
    y = x.new_empty((outputs, batch) if last else (batch, outputs))
    if y.numel() == 0:
        return y
    (x_f, x_n), (y_f, y_n) = (x.stride(), y.stride()) if last else (x.stride()[::-1], y.stride()[::-1])
    qp = max(1 << max(0, q - 1).bit_length(), 16 // r)
    with current(x):
        monarch_kernel[lambda g: (triton.cdiv(m, g["BL"]) * triton.cdiv(batch, g["BN"]),)](
            x, w_1, w_2, bias, y, batch, 1 << (batch - 1).bit_length(), columns, outputs, p, q, m, h,
            x_n, x_f, y_n, y_f, HAS_BIAS=bias is not None, PRECISION=precision, R=r, PP=_power(p), QP=qp,
        )  # fmt: skip
    return y
