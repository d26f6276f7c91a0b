"""The fp8 layer's kernels: the reference, a differentiable one in floats, and `torch._scaled_mm`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from basis_search.families.fp8.fit import fit
from basis_search.families.fp8.reference import reference, static_scale
from basis_search.families.fp8.scales import LARGEST, quantise
from basis_search.families.fp8.spec import Spec
from basis_search.families.protocol import GpuOperator, Kernel, Params, accept, guarded, reference_kernel
from basis_search.layers.layer import LayerLike

MULTIPLE = 16
"""The operator's inputs and outputs are multiples of it."""


def _torch_pack(spec: Spec, params: Params) -> Params:
    # e4m3 has 4 significant bits: products have 8, so that float32 rounds only their sums.
    wide = torch.float64 if params["largest"].dtype == torch.float64 else torch.float32
    packed = {**params, "weight": params["weight"].view(torch.float8_e4m3fn).to(wide)}
    static = static_scale(params)
    return packed if static is None else {**packed, "input_scale": static}


def _torch(spec: Spec, packed: Params, x: Tensor) -> Tensor:
    codes, scale = quantise(spec, x.detach(), packed.get("input_scale"))
    wide = packed["weight"].dtype
    codes = codes.to(wide)
    if x.requires_grad and torch.is_grad_enabled():
        through = x.to(wide) / scale.to(wide)
        codes = codes + (through - through.detach())  # adds zero, and gives the rounding a gradient of 1
    y = F.linear(codes, packed["weight"]) * (scale.to(wide) * (packed["largest"].to(wide) / LARGEST))
    if "bias" in packed:
        y = y + packed["bias"].to(wide)
    return y.to(x.dtype)


def _scaled_mm_pack(spec: Spec, params: Params) -> Any:
    """Weight [in, out], column-major, its scale [1] or [1, out], the inputs' scale [1] or None, bias or None."""
    weight = params["weight"].view(torch.float8_e4m3fn).contiguous().t()
    scale = params["largest"].detach().float() / LARGEST
    bias = params["bias"].detach() if "bias" in params else None
    return weight, scale if spec.per == "tensor" else scale[None], static_scale(params), bias


def _scaled_mm(spec: Spec, packed: Any, x: Tensor) -> Tensor:
    """Sums in bfloat16 layers are the tensor cores' own ("fast accumulation", 14 bits or more of mantissa); in float16
    layers, whose outputs have more digits, partial sums are added in float32.
    """
    weight, weight_scale, static, bias = packed
    out_features = weight.shape[1]
    if x.numel() == 0:
        return x.new_empty(*x.shape[:-1], out_features)
    codes, scale = quantise(spec, x.reshape(-1, x.shape[-1]), static)
    if spec.per == "row" and static is not None:
        scale = scale.expand(len(codes), 1).contiguous()
    y = torch._scaled_mm(
        codes.contiguous(), weight, scale, weight_scale, bias=None if bias is None else bias.to(x.dtype),
        out_dtype=x.dtype, use_fast_accum=x.dtype == torch.bfloat16,
    )  # fmt: skip
    return y.view(*x.shape[:-1], out_features)


def _sizes(spec: Spec, layer: LayerLike) -> str | None:
    k, m = layer.in_features, layer.out_features
    if k % MULTIPLE or m % MULTIPLE:
        return f"torch._scaled_mm takes inputs and outputs in multiples of {MULTIPLE}, but the layer has {k} and {m}"
    return None


KERNELS = (
    reference_kernel(reference, differentiable=False, linear=False),
    Kernel("torch", _torch, _torch_pack, accept, differentiable=True, straight_through=True),
    guarded(
        Kernel("scaled-mm", _scaled_mm, _scaled_mm_pack, accept),
        GpuOperator("torch._scaled_mm", (8, 9), (torch.bfloat16, torch.float16)),
        _sizes,
        fit,
        reference,
    ),
)
