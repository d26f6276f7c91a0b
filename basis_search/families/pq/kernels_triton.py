"""The Triton path: codes by one launch, sums of table entries by another; no gradient."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from basis_search.families.pq.reference import encode
from basis_search.families.pq.spec import Spec
from basis_search.families.protocol import Params, triton_refusal
from basis_search.layers.layer import LayerLike


def refuses(spec: Spec, layer: LayerLike) -> str | None:
    """None where the Triton kernels can run the layer."""
    return triton_refusal(layer)


def pack(spec: Spec, params: Params) -> Params:
    """Contiguous tables and trees; float32 scale [out] and offset [out], which takes the bias in."""
    table = params["table"].detach()
    ones = torch.ones(table.shape[2], device=table.device)
    offset = torch.zeros_like(ones, dtype=torch.float64)
    for name in ("offset", "bias"):
        if name in params:
            offset = offset + params[name].detach().double()
    packed = {
        "table": (table if spec.table == "uint8" else table.float()).contiguous(),
        "scale": params["scale"].detach().float().contiguous() if spec.table == "uint8" else ones,
        "offset": offset.float(),
    }
    if spec.encoder == "tree":
        return packed | {
            "split_columns": params["split_columns"].detach().int().contiguous(),
            "thresholds": params["thresholds"].detach().float().contiguous(),
        }
    return packed | {"centroids": params["centroids"].detach()}


@cache
def _gpu() -> Any:
    from basis_kernels.pq import gpu

    return gpu


def encode_rows(packed: Params, rows: Tensor) -> Tensor:
    """Codes of rows [n, in] by trees: [n, C] uint8."""
    codes: Tensor = _gpu().encode(rows, packed["split_columns"], packed["thresholds"])
    return codes


def run(spec: Spec, packed: Params, x: Tensor) -> Tensor:
    """x [..., in] -> y [..., out] in x's dtype; sums of uint8 entries are exact, the rest is float32."""
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    if rows.requires_grad:
        rows = rows.detach()
    codes = encode_rows(packed, rows) if spec.encoder == "tree" else encode(spec, packed, rows).to(torch.uint8)
    y: Tensor = _gpu().table_sum(codes, packed["table"], packed["scale"], packed["offset"], x.dtype)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], y.shape[1])
