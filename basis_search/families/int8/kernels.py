"""The int8 layer's kernels: the reference, a differentiable one in floats, torch's two quantised linears on CPUs, and
its integer product on GPUs.

"torch-onednn" calls the operator that torch's compiler emits, on plain tensors; "torch-int8" calls the fused dynamic
operator of the fbgemm engine, which is faster on small layers because it quantises the inputs while it packs them.
"torch-int-mm" calls `torch._int_mm` on CUDA devices, with the same codes as the others.
"""

from __future__ import annotations

import ctypes
import math
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from basis_search.families.int8.reference import qparams, qparams_on_device, quantise, reference
from basis_search.families.int8.spec import Spec
from basis_search.families.protocol import (
    GpuOperator,
    Kernel,
    Params,
    accept,
    reference_kernel,
)
from basis_search.layers.layer import LayerLike


def _torch_pack(spec: Spec, params: Params) -> Params:
    # Codes and weights are whole numbers of at most 8 bits: float32 adds a thousand products without rounding.
    wide = torch.float64 if params["scale"].dtype == torch.float64 else torch.float32
    return {**params, "weight": params["weight"].to(wide)}


def _torch(spec: Spec, packed: Params, x: Tensor) -> Tensor:
    codes, scale = quantise(x.detach(), spec.reduce_range)
    codes = codes.to(packed["weight"].dtype)
    if x.requires_grad and torch.is_grad_enabled():
        through = x.to(codes.dtype) / scale
        codes = codes + (through - through.detach())  # adds zero, and gives the rounding a gradient of 1
    y = F.linear(codes, packed["weight"]) * (scale * packed["scale"].to(codes.dtype))
    if "bias" in packed:
        y = y + packed["bias"].to(codes.dtype)
    return y.to(x.dtype)


def _integers(params: Params) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Weight [out, in] int8, scale [out] float32, zero points [out], bias [out] float32 or None."""
    bias = params["bias"].detach().float().contiguous() if "bias" in params else None
    weight = params["weight"].detach().contiguous()
    return weight, params["scale"].detach().float(), torch.zeros(len(weight), dtype=torch.int64), bias


def _onednn_pack(spec: Spec, params: Params) -> Any:
    weight, scale, zero, bias = _integers(params)
    return torch.ops.onednn.qlinear_prepack(weight, None), scale, zero, bias


def _onednn(spec: Spec, packed: Any, x: Tensor) -> Tensor:
    weight, weight_scale, weight_zero, bias = packed
    rows = x.detach().reshape(-1, x.shape[-1]).float().contiguous()
    if len(rows) == 0:
        return x.new_empty(*x.shape[:-1], len(weight_scale))
    low, high = torch.aminmax(rows)
    scale, zero = qparams(float(low), float(high), spec.reduce_range)
    inverse = ctypes.c_float(1.0 / scale).value
    # One pass; torch's add fuses the multiply-add as `quantise` does, which the probe below checks.
    codes = torch.add(torch.tensor(float(zero)), rows, alpha=inverse).round_().to(torch.uint8)
    y: Tensor = torch.ops.onednn.qlinear_pointwise(
        codes, scale, zero, weight, weight_scale, weight_zero, bias, 1.0, 0, torch.float32, "none", [], ""
    )
    return y.to(x.dtype).view(*x.shape[:-1], len(weight_scale))


def _fbgemm_pack(spec: Spec, params: Params) -> Any:
    weight, scale, zero, bias = _integers(params)
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        with warnings.catch_warnings():
            # torch deprecates the quantised tensor that this packing takes; "torch-onednn" needs none.
            warnings.filterwarnings("ignore", message=".*quantized tensor creation functions", category=UserWarning)
            quantised = torch._make_per_channel_quantized_tensor(weight, scale, zero, 0)
        return torch.ops.quantized.linear_prepack(quantised, bias), len(scale)
    finally:
        torch.backends.quantized.engine = before


def _fbgemm(spec: Spec, packed: Any, x: Tensor) -> Tensor:
    weight, out_features = packed
    if x.numel() == 0:
        return x.new_empty(*x.shape[:-1], out_features)
    rows = x.detach().reshape(-1, x.shape[-1]).float().contiguous()
    if not math.isfinite(float(rows.sum())) and not bool(torch.isfinite(rows).all()):
        # The operator ignores NaNs; a call has one scale, so all its output is undefined. (A sum alone may overflow.)
        return x.new_full((*x.shape[:-1], out_features), math.nan)
    y: Tensor = torch.ops.quantized.linear_dynamic(rows, weight, spec.reduce_range)
    return y.to(x.dtype).view(*x.shape[:-1], out_features)


CPU = torch.device("cpu")
SHIFT = 128
"""Taken from the codes in [0, 255] to make them int8; the outputs make up for it with the sums of the weights."""
LEAST_ROWS, PADDED_ROWS = 17, 32
"""Rows that `torch._int_mm` needs on a GPU, and to how many fewer are padded."""
MULTIPLE = 8
"""Its inputs and outputs are multiples of it."""


def _int_mm_pack(spec: Spec, params: Params) -> Any:
    """Weight [in, out] in column-major order, scales [out], sums of the weights [out] int32, bias [out] or None."""
    weight, scale = params["weight"].detach().contiguous(), params["scale"].detach().float()
    bias = params["bias"].detach().float() if "bias" in params else None
    return weight.t(), scale, weight.sum(1, dtype=torch.int32), bias


def _int_mm(spec: Spec, packed: Any, x: Tensor) -> Tensor:
    """s t (sum_i (q_i - 128) w_ji + (128 - z) sum_i w_ji) + b_j: the bracket in int32, exact up to 65,000 inputs."""
    weight, weight_scale, sums, bias = packed
    out_features = len(sums)
    if x.numel() == 0:
        return x.new_empty(*x.shape[:-1], out_features)
    rows = x.detach().reshape(-1, x.shape[-1])
    scale, zero = qparams_on_device(rows, spec.reduce_range)
    inverse = (1 / scale).float().double()
    codes = torch.empty(rows.shape, dtype=torch.float32, device=x.device)
    # One pass in float64, rounded once to float32, as in `quantise`.
    torch.addcmul(zero.reshape(1), rows, inverse.reshape(1), out=codes)
    shifted = codes.round_().clamp_(0, 255).sub_(SHIFT).to(torch.int8)
    if len(rows) < LEAST_ROWS:
        shifted = F.pad(shifted, (0, 0, 0, PADDED_ROWS - len(rows)))
    total = torch._int_mm(shifted, weight)[: len(rows)] + (SHIFT - zero).int() * sums
    y = torch.empty(total.shape, dtype=x.dtype, device=x.device)
    both = scale.float() * weight_scale
    y = torch.mul(total, both, out=y) if bias is None else torch.addcmul(bias, total, both, out=y)
    return y.view(*x.shape[:-1], out_features)


def _probe(
    pack: Callable[[Spec, Params], Any],
    run: Callable[[Spec, Any, Tensor], Tensor],
    spec: Spec,
    device: torch.device = CPU,
) -> str | None:
    """None if the operator is exact here on the largest sums and on random inputs, else what is wrong."""
    draw = torch.Generator().manual_seed(0)
    largest = torch.full((16, 128), 127, dtype=torch.int8)
    weights = [largest, torch.randint(-127, 128, (16, 128), dtype=torch.int8, generator=draw)]
    inputs = [torch.ones(1, 128), torch.ones(33, 128), torch.randn(2000, 128, generator=draw)]
    inputs = [x.to(device) for x in inputs]
    for weight in weights:
        params = {"weight": weight.to(device), "scale": torch.ones(16, device=device)}
        try:
            packed = pack(spec, params)
            got = [run(spec, packed, x) for x in inputs]
        except (RuntimeError, AttributeError) as error:
            return f"torch's operator does not run here ({str(error).splitlines()[0]})"
        for x, y in zip(inputs, got, strict=True):
            expected = reference(spec, params, x)
            if float((y.double() - expected).norm()) > 1e-5 * float(expected.norm()):
                return (
                    "torch's operator is not exact here, as happens where 8-bit products are added in 16 bits (no VNNI)"
                )
    return None


@cache
def _fbgemm_refusal(spec: Spec) -> str | None:
    known = torch.backends.quantized.supported_engines
    if "fbgemm" not in known:
        return (
            f"torch's quantised linear needs the fbgemm engine, but this torch has only: {', '.join(known) or 'none'}"
        )
    return _probe(_fbgemm_pack, _fbgemm, spec)


@cache
def _onednn_refusal(spec: Spec) -> str | None:
    return _probe(_onednn_pack, _onednn, spec)


def _on_cpu(probe: Callable[[Spec], str | None]) -> Callable[[Spec, LayerLike], str | None]:
    def refuses(spec: Spec, layer: LayerLike) -> str | None:
        if layer.device.type != "cpu":
            return f"torch's quantised linear runs on the CPU, but the layer is on {layer.device}"
        if layer.dtype == torch.float64:
            return "torch's quantised linear gives float32, but the layer is float64; run it in float32"
        reason = probe(spec)
        if reason is not None and not spec.reduce_range:
            return f"{reason}; reduce_range=True asks for less"
        return reason

    return refuses


_INT_MM = GpuOperator("torch._int_mm", (7, 5), (torch.float32, torch.bfloat16, torch.float16))


@cache
def _int_mm_first_run(spec: Spec, device: torch.device, gpu: str) -> str | None:
    return _probe(_int_mm_pack, _int_mm, spec, device)


def _int_mm_refusal(spec: Spec, layer: LayerLike) -> str | None:
    reason = _INT_MM.refusal(layer)
    if reason is not None:
        return reason
    if layer.in_features % MULTIPLE or layer.out_features % MULTIPLE:
        return (
            f"torch._int_mm takes inputs and outputs in multiples of {MULTIPLE}, but the layer has {layer.in_features} "
            f"and {layer.out_features}"
        )
    if torch.cuda.is_available():
        return _int_mm_first_run(spec, layer.device, torch.cuda.get_device_properties(layer.device).name)
    return None


KERNELS = (
    reference_kernel(reference, differentiable=False, linear=False),
    Kernel("torch", _torch, _torch_pack, accept, differentiable=True, straight_through=True),
    Kernel("torch-onednn", _onednn, _onednn_pack, _on_cpu(_onednn_refusal)),
    Kernel("torch-int8", _fbgemm, _fbgemm_pack, _on_cpu(_fbgemm_refusal)),
    Kernel("torch-int-mm", _int_mm, _int_mm_pack, _int_mm_refusal),
)
