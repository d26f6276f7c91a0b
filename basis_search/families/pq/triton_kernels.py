"""The Triton path: codes by one launch, sums of table entries by another; no gradient."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from basis_search.families.pq.reference import encode
from basis_search.families.pq.spec import Spec
from basis_search.family import Params
from basis_search.layer import LayerLike

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LEAST_CAPABILITY = (8, 0)


def refuses(spec: Spec, layer: LayerLike) -> str | None:
    """None where the Triton kernels can run the layer."""
    if find_spec("triton") is None:
        return "triton is not installed; use the torch kernel"
    if layer.device.type != "cuda":
        return f"the layer is on {layer.device.type}, and this kernel runs on CUDA devices"
    if layer.dtype not in DTYPES:
        return f"it takes float32, float16 and bfloat16, not {str(layer.dtype).removeprefix('torch.')}; use torch"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device here"
    if torch.cuda.get_device_capability(layer.device) < LEAST_CAPABILITY:
        return "the GPU's compute capability is below 8.0; use the torch kernel"
    return None


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


def encode_rows(packed: Params, rows: Tensor) -> Tensor:
    """Codes of rows [n, in] by trees: [n, C] uint8."""
    from basis_kernels.pq import gpu

    return gpu.encode(rows, packed["split_columns"], packed["thresholds"])


def run(spec: Spec, packed: Params, x: Tensor) -> Tensor:
    """x [..., in] -> y [..., out] in x's dtype; sums of uint8 entries are exact, the rest is float32."""
    from basis_kernels.pq import gpu

    rows = x.detach().reshape(-1, x.shape[-1])
    codes = encode_rows(packed, rows) if spec.encoder == "tree" else encode(spec, packed, rows).to(torch.uint8)
    y = gpu.table_sum(codes, packed["table"], packed["scale"], packed["offset"], x.dtype)
    return y.view(*x.shape[:-1], y.shape[1])
