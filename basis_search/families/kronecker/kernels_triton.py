"""Triton kernels: one launch per factor, or one for both factors of a Monarch chain; gradients by the same kernels.

dx = dy K is the product with the blocks transposed; dw[i,j,k,l] = sum_n x[n,(i,k,l)] dy[n,(i,j,l)].
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from basis_search.families.kronecker.reference import factors_of, out_features_of
from basis_search.families.kronecker.spec import Spec, misfit
from basis_search.families.protocol import Params, triton_refusal
from basis_search.layers.layer import LayerLike

INSTALLED = importlib.util.find_spec("triton") is not None


class Packed(NamedTuple):
    """A chain packed for the GPU."""

    weights: list[Tensor]  # [a, d, c, b], in order of application
    bias: Tensor | None  # [out]
    out: int


@cache
def _gpu() -> Any:
    from basis_kernels.kronecker import gpu

    return gpu


def runs_on(device: torch.device) -> bool:
    """Whether Triton kernels run there: on CUDA, or anywhere in Triton's interpreter."""
    return INSTALLED and (device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1")


def refuses(precision: str, spec: Spec, layer: LayerLike) -> str | None:
    """Why the Triton kernels cannot run the layer; None if they can."""
    if (refusal := triton_refusal(layer)) is not None:
        return refusal
    if precision != "ieee" and layer.dtype != torch.float32:
        return f"{precision} is a way to multiply float32, and the layer is {layer.dtype}; use the triton kernel"
    return misfit(spec, layer)


def packed_factor(w: Tensor) -> Tensor:
    """[a, b, c, d] as [a, d, c, b]; differentiable."""
    return w.permute(0, 3, 2, 1).contiguous()


def pack(spec: Spec, params: Params) -> Packed:
    """Pack a layer's factors; differentiable."""
    weights = [packed_factor(w) for w in reversed(factors_of(spec, params))]
    return Packed(weights, params.get("bias"), out_features_of(spec, params))


class _Factor(torch.autograd.Function):
    """y = x K^T, or with `last` K x, for w packed [a, d, c, b]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, last: bool, precision: str) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.last, ctx.precision = last, precision
        y: Tensor = _gpu().multiply(x, w, last=last, precision=precision)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        gpu = _gpu()
        x, w = ctx.saved_tensors
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = gpu.multiply(dy, w, transposed=True, last=ctx.last, precision=ctx.precision)
        if ctx.needs_input_grad[1]:
            a, d, c, b = w.shape
            dw = gpu.weight_gradient(x, dy, (a, b, c, d), last=ctx.last, precision=ctx.precision).to(w.dtype)
        return dx, dw, None, None


@lru_cache(maxsize=1024)
def _one_launch(last: torch.Size, first: torch.Size, size: int, precision: str) -> bool:
    """Whether two factors, of packed shapes [a, d, c, b] and values of `size` bytes, are computed by one launch."""
    left, right = ((a, b, c, d) for a, d, c, b in (last, first))
    return bool(_gpu().fits(left, right, size, precision))


def chain(
    x: Tensor,
    weights: Sequence[Tensor],
    *,
    bias: Tensor | None = None,
    out: int | None = None,
    last: bool = False,
    precision: str = "ieee",
    fused: bool = True,
) -> Tensor:
    """Packed factors, in order of application, times x: [rows, in] -> [rows, out] (both transposed with `last`).

    With gradients each factor is a node of the autograd graph. Without, the last launch adds the bias and drops padded
    outputs, and with `fused` two factors of a Monarch chain that fit on chip take one launch.
    """
    for w in weights:
        if w.dtype != x.dtype:
            weights = [v.to(x.dtype) for v in weights]
            break
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights, *([] if bias is None else [bias]))):
        columns = weights[0].shape[0] * weights[0].shape[1] * weights[0].shape[2]
        missing = columns - x.shape[0 if last else 1]
        graded = torch.nn.functional.pad(x, (0, 0, 0, missing) if last else (0, missing)) if missing else x
        for w in weights:
            graded = _Factor.apply(graded, w, last, precision)  # type: ignore[no-untyped-call]
        if out is not None:
            graded = graded[:out] if last else graded[:, :out]
        if bias is None:
            return graded
        return graded + (bias[:, None] if last else bias).to(graded.dtype)
    gpu = _gpu()
    if bias is not None and not bias.is_contiguous():
        bias = bias.contiguous()
    if fused and len(weights) == 2 and _one_launch(weights[1].shape, weights[0].shape, x.element_size(), precision):
        y: Tensor = gpu.monarch(x, weights[1], weights[0], bias=bias, outputs=out, last=last, precision=precision)
        return y
    *others, end = weights
    for w in others:
        x = gpu.multiply(x, w, last=last, precision=precision)
    result: Tensor = gpu.multiply(x, end, bias=bias, outputs=out, last=last, precision=precision)
    return result


def run(precision: str, fused: bool, spec: Spec, packed: Packed, x: Tensor) -> Tensor:
    """x [..., in] -> y [..., out]."""
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    y = chain(rows, packed.weights, bias=packed.bias, out=packed.out, precision=precision, fused=fused)
    return y if x.dim() == 2 else y.reshape(*x.shape[:-1], packed.out)
