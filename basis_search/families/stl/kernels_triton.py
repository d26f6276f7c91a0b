"""Triton kernels: z = E x, then either s_l = z_l w_l and y = D s + b, or both in one launch; and gradients.

With ds = D^T dy and dz_l = ds_l w_l^T the gradients are dx = E^T dz, dw_l = z_l^T ds_l, dE = sum dz x^T and
dD = sum dy s^T: encode and decode with the other basis, transposed. The backward pass recomputes z and s.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

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


def run(fused: bool, spec: Spec, params: Params, x: Tensor) -> Tensor:
    """x [..., in] -> y [..., out] in x's dtype; products and sums in float32, encoded values in x's dtype."""
    m = int(params["out_features"])
    rows = x.reshape(-1, x.shape[-1])
    tensors = (params[name].to(x.dtype) for name in ("weight", "encode", "decode"))
    bias = params.get("bias")
    call = _Call(spec.sides[0], m, fused)
    y: Tensor = _Multiply.apply(rows, *tensors, bias, call)  # type: ignore[no-untyped-call]
    if spec.waist:
        y = y + low_rank_product(params, rows)
    return y.reshape(*x.shape[:-1], m)


unfused = partial(run, False)
fused = partial(run, True)


def _precision(x: Tensor) -> str:
    """Precision of float32 products: what torch's matmuls are allowed."""
    allowed = x.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    return "tf32" if allowed else "ieee"


class _Call(NamedTuple):
    tile: int
    out_features: int
    fused: bool


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, encode: Tensor, decode: Tensor, bias: Tensor | None, call: _Call
    ) -> Tensor:
        from basis_kernels.stl import gpu

        tile, m, fused = call
        ctx.save_for_backward(x, weight, encode, decode)
        ctx.tile, ctx.fused, ctx.precision = tile, fused, _precision(x)
        ctx.bias_dtype = None if bias is None else bias.dtype
        z = gpu.encode(x, encode, tile, ctx.precision)
        if fused:
            return gpu.multiply_decode(z, weight, decode, tile, len(x), m, bias, ctx.precision)
        return gpu.decode(torch.bmm(z, weight), decode, tile, len(x), m, bias, ctx.precision)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from basis_kernels.stl import gpu

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
