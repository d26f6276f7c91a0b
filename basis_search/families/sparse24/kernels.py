"""The 2:4-sparse layer's kernels: the reference, a dense linear with zeros, and torch's semi-structured tensors."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
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
from basis_search.families.sparse24.fit import fit
from basis_search.families.sparse24.layout import expand
from basis_search.families.sparse24.reference import reference
from basis_search.families.sparse24.spec import Spec
from basis_search.layers.layer import LayerLike

ROWS, COLUMNS = 32, 64
"""Outputs and inputs are multiples of these: CUTLASS takes no smaller ones, cuSPARSELt multiples of 16."""


def _pack(spec: Spec, params: Params) -> Params:
    packed = {"weight": expand(params["values"], params["index"])}
    return packed | ({"bias": params["bias"]} if "bias" in params else {})


def _semi_structured_pack(spec: Spec, params: Params) -> Any:
    dense = expand(params["values"].detach(), params["index"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*SparseSemiStructuredTensor is in prototype", category=UserWarning)
        weight = torch.sparse.to_sparse_semi_structured(dense)
    return weight, len(dense), params["bias"].detach() if "bias" in params else None


def _semi_structured(spec: Spec, packed: Any, x: Tensor) -> Tensor:
    weight, out_features, bias = packed
    if x.numel() == 0:
        return x.new_empty(*x.shape[:-1], out_features)
    return F.linear(aligned_rows(x), weight, bias).reshape(*x.shape[:-1], out_features)


def _sizes(spec: Spec, layer: LayerLike) -> str | None:
    if layer.out_features % ROWS or layer.in_features % COLUMNS:
        return (
            f"torch's semi-structured tensors take outputs in multiples of {ROWS} and inputs in multiples of {COLUMNS}"
            f", but the layer has {layer.out_features} and {layer.in_features}"
        )
    return None


KERNELS = (
    reference_kernel(reference),
    Kernel("torch", padded_linear, _pack, accept, differentiable=True),
    guarded(
        Kernel("semi-structured", _semi_structured, _semi_structured_pack, accept),
        GpuOperator("torch.sparse.to_sparse_semi_structured", (8, 0), (torch.bfloat16, torch.float16)),
        _sizes,
        fit,
        reference,
    ),
)
