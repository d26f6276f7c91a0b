"""Triton kernels: z = E x, then either s_l = z_l w_l and y = D s + b, or both in one launch; and gradients.

On an H200 one launch for both takes 3 to 7 times as long as torch's batched product and a decode: its small tiles are
bound by the second cache. "triton" therefore takes it only where a tuning file says that it is faster.

With ds = D^T dy and dz_l = ds_l w_l^T the gradients are dx = E^T dz, dw_l = z_l^T ds_l, dE = sum dz x^T and
dD = sum dy s^T: encode and decode with the other basis, transposed. The backward pass recomputes z and s.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from basis_search.families.protocol import Params, triton_refusal
from basis_search.families.stl.low_rank_part import low_rank_product
from basis_search.families.stl.spec import Spec
from basis_search.layers.layer import LayerLike


def refuses(spec: Spec, layer: LayerLike) -> str | None:
    """Why the Triton kernels cannot run the layer; None if they can."""
    if not isinstance(spec.tile, int):
        return f"it takes square tiles, not {spec.tile}; use the torch kernel"
    return triton_refusal(layer)


@cache
def _gpu() -> Any:
    from basis_kernels.stl import gpu

    return gpu


def run(fused: bool | None, spec: Spec, params: Params, x: Tensor) -> Tensor:
    """x [..., in] -> y [..., out] in x's dtype; products and sums in float32, encoded values in x's dtype.

    With `fused`, products and decode are one launch; None leaves it to the tuning files.
    """
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    weight, encode, decode = params["weight"], params["encode"], params["decode"]
    if not x.dtype == weight.dtype == encode.dtype == decode.dtype:
        weight, encode, decode = weight.to(x.dtype), encode.to(x.dtype), decode.to(x.dtype)
    bias, m = params.get("bias"), int(params["out_features"])
    call = _Call(cast(int, spec.tile), m, fused, _precision(x))
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, encode, decode, bias)):
        y: Tensor = _Multiply.apply(rows, weight, encode, decode, bias, call)  # type: ignore[no-untyped-call]
    else:
        y = _forward(rows, weight, encode, decode, bias, call)
    if spec.waist:
        y = y + low_rank_product(params, rows)
    return y if x.dim() == 2 else y.reshape(*x.shape[:-1], m)


unfused = partial(run, None)
fused = partial(run, True)


def _precision(x: Tensor) -> str:
    """Precision of float32 products: what torch's matmuls are allowed."""
    if x.dtype != torch.float32:
        return "ieee"
    settings = torch.backends.cuda.matmul
    # torch 2.9 replaced the second by the first, and then refuses to read the second.
    allowed = settings.fp32_precision == "tf32" if hasattr(settings, "fp32_precision") else settings.allow_tf32
    return "tf32" if allowed else "ieee"


class _Call(NamedTuple):
    tile: int
    out_features: int
    fused: bool | None
    precision: str


def _forward(x: Tensor, weight: Tensor, encode: Tensor, decode: Tensor, bias: Tensor | None, call: _Call) -> Tensor:
    """x [n, in] -> y [n, out]; all in one dtype but the bias, which is added in float32."""
    gpu = _gpu()
    tile, m, fused, precision = call
    if bias is not None and not bias.is_contiguous():
        bias = bias.contiguous()
    z = gpu.encode(x, encode, tile, precision)
    (r, K, M), n = weight.shape, x.shape[0]
    if fused or (fused is None and gpu.fused_wins(x.device, x.dtype, precision, tile, (n, K, M, r))):
        y: Tensor = gpu.multiply_decode(z, weight, decode, tile, n, m, bias, precision)
        return y
    decoded: Tensor = gpu.decode(torch.bmm(z, weight), decode, tile, n, m, bias, precision)
    return decoded


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, encode: Tensor, decode: Tensor, bias: Tensor | None, call: _Call
    ) -> Tensor:
        ctx.save_for_backward(x, weight, encode, decode)
        ctx.tile, ctx.fused, ctx.precision = call.tile, call.fused, call.precision
        ctx.bias_dtype = None if bias is None else bias.dtype
        return _forward(x, weight, encode, decode, bias, call)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gpu = _gpu()
        x, weight, encode, decode = ctx.saved_tensors
        dy, tile, precision = gradients[0], ctx.tile, ctx.precision
        need_x, need_weight, need_encode, need_decode, need_bias = ctx.needs_input_grad[:5]
        dx = d_weight = d_encode = d_decode = d_bias = None
        if need_bias:
            d_bias = dy.sum(dim=0, dtype=torch.float32).to(ctx.bias_dtype)
        if need_x or need_weight or need_encode:
            ds = gpu.encode(dy, decode.T, tile, precision)  # [r, n/t, m/t]
        if need_encode:
            dz = torch.bmm(ds, weight.mT)
            d_encode = gpu.basis_gradient(dz, x, tile, precision).to(encode.dtype)
            if need_x:
                dx = gpu.decode(dz, encode.T, tile, len(x), x.shape[1], precision=precision)
            del dz
        elif need_x and ctx.fused:
            dx = gpu.multiply_decode(ds, weight.mT, encode.T, tile, len(x), x.shape[1], precision=precision)
        elif need_x:
            dx = gpu.decode(torch.bmm(ds, weight.mT), encode.T, tile, len(x), x.shape[1], precision=precision)
        if need_weight or need_decode:
            z = gpu.encode(x, encode, tile, precision)
        if need_weight:
            d_weight = torch.bmm(z.mT, ds)
        if need_decode:
            products = torch.bmm(z, weight)
            d_decode = gpu.basis_gradient(products, dy, tile, precision).T.to(decode.dtype)
        return dx, d_weight, d_encode, d_decode, d_bias, None
