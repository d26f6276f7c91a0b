"""The weight-only layer's kernels: the reference, a linear with the dequantised weight, and torch's packed products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from basis_search.families.protocol import (
    GpuOperator,
    Kernel,
    Params,
    accept,
    aligned_rows,
    guarded,
    padded_linear,
    reference_kernel,
)
from basis_search.families.weight_only.fit import fit
from basis_search.families.weight_only.layout import dequantised
from basis_search.families.weight_only.reference import reference
from basis_search.families.weight_only.spec import Spec
from basis_search.layers.layer import LayerLike

TILE = 16
"""Inputs of a tensor core's tile in `torch._weight_int4pack_mm`, of which 8, 4 or 2 are packed next to each other."""
TILE_OUTPUTS = 8


def _pack(spec: Spec, params: Params) -> Params:
    packed = {"weight": dequantised(spec, params, params["scale"].dtype)}
    return packed | ({"bias": params["bias"]} if "bias" in params else {})


def _int8_pack(spec: Spec, params: Params) -> Any:
    bias = params["bias"].detach() if "bias" in params else None
    return params["weight"].contiguous(), params["scale"].detach().contiguous(), bias


def _int4_pack(spec: Spec, params: Params) -> Any:
    """Codes in the order of the tensor cores' tiles, and [groups, out, 2] scales with zero points."""
    columns = params["weight"].shape[1] * 2
    tiles = next(tiles for tiles in (8, 4, 2) if columns % (TILE * tiles) == 0)
    codes = torch.ops.aten._convert_weight_to_int4pack(params["weight"].contiguous(), tiles)
    scales = torch.stack([params["scale"].detach().t(), params["zero"].detach().t()], -1).contiguous()
    return codes, scales, params["bias"].detach() if "bias" in params else None


def _product(spec: Spec, rows: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    if spec.bits == 8:
        y: Tensor = torch.ops.aten._weight_int8pack_mm(rows, codes, scales)
    else:
        y = torch.ops.aten._weight_int4pack_mm(rows, codes, spec.group, scales)
    return y


def _packed(spec: Spec, packed: Any, x: Tensor) -> Tensor:
    codes, scales, bias = packed
    out_features = len(codes) * (1 if spec.bits == 8 else TILE_OUTPUTS)
    if x.numel() == 0:
        return x.new_empty(*x.shape[:-1], out_features)
    y = _product(spec, aligned_rows(x), codes, scales)
    return (y if bias is None else y.add_(bias)).view(*x.shape[:-1], out_features)


def _int8_sizes(spec: Spec, layer: LayerLike) -> str | None:
    if spec.bits != 8:
        return f"torch._weight_int8pack_mm takes weights of 8 bits, but the spec has {spec.bits}"
    if layer.in_features % TILE or layer.out_features % TILE:
        return (
            f"torch._weight_int8pack_mm is safe with inputs and outputs in multiples of {TILE} (its CPU version reads "
            f"past the end of others), but the layer has {layer.in_features} and {layer.out_features}"
        )
    return None


def _int4_sizes(spec: Spec, layer: LayerLike) -> str | None:
    if spec.bits != 4:
        return f"torch._weight_int4pack_mm takes weights of 4 bits, but the spec has {spec.bits}"
    if layer.in_features % spec.group or layer.out_features % TILE_OUTPUTS:
        return (
            f"torch._weight_int4pack_mm takes inputs in multiples of the group of {spec.group} and outputs in "
            f"multiples of {TILE_OUTPUTS}, but the layer has {layer.in_features} and {layer.out_features}"
        )
    return None


def _on_gpus(
    name: str,
    pack: Callable[[Spec, Params], Any],
    operator: GpuOperator,
    sizes: Callable[[Spec, LayerLike], str | None],
) -> Kernel:
    return guarded(Kernel(name, _packed, pack, accept), operator, sizes, fit, reference)


KERNELS = (
    reference_kernel(reference),
    Kernel("torch", padded_linear, _pack, accept, differentiable=True),
    _on_gpus(
        "int8pack", _int8_pack, GpuOperator("torch._weight_int8pack_mm", (8, 0), (torch.bfloat16, torch.float16)),
        _int8_sizes,
    ),
    _on_gpus(
        "int4pack", _int4_pack, GpuOperator("torch._weight_int4pack_mm", (8, 0), (torch.bfloat16,)), _int4_sizes
    ),
)  # fmt: skip
