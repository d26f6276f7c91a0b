"""The product-quantised layer's kernels: the reference, torch's embedding bag, compiled encode + scan, Triton.

The hash is a step function: no gradient passes through it, neither to the input nor to thresholds and centroids. From
"torch", gradients reach float tables, scale, offset and bias.
"""

from __future__ import annotations

from functools import partial, reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from basis_search.families.pq import kernels_cpu, kernels_triton
from basis_search.families.pq.reference import encode, reference
from basis_search.families.pq.spec import BUCKETS, Spec
from basis_search.families.protocol import (
    Kernel,
    Params,
    reference_kernel,
)
from basis_search.layers.layer import LayerLike


def _pack_torch(spec: Spec, params: Params) -> Params:
    """The tables as one matrix [16 C, out] for an embedding bag, float32 or wider; sums of its integers are exact."""
    packed = dict(params)
    floating = [t.dtype for t in params.values() if t.is_floating_point()]
    packed["table"] = params["table"].to(reduce(torch.promote_types, floating, torch.float32)).flatten(0, 1)
    packed["first"] = BUCKETS * torch.arange(spec.codebooks, device=params["table"].device)
    return packed


def _torch(spec: Spec, packed: Params, x: Tensor) -> Tensor:
    codes = encode(spec, packed, x.detach().reshape(-1, x.shape[-1]))  # [n, C]
    work = torch.promote_types(packed["table"].dtype, x.dtype)
    y = F.embedding_bag(codes + packed["first"], packed["table"].to(work), mode="sum")  # [n, out]
    if spec.table == "uint8":
        y = torch.addcmul(packed["offset"].to(work), y, packed["scale"].to(work))
    if "bias" in packed:
        y = y + packed["bias"].to(work)
    return y.to(x.dtype).view(*x.shape[:-1], y.shape[1])


def _refuse_averages(spec: Spec, layer: LayerLike) -> str | None:
    return "it adds tables exactly; averaged sums run compiled" if spec.group > 1 else None


def _refuse_triton(spec: Spec, layer: LayerLike) -> str | None:
    return _refuse_averages(spec, layer) or kernels_triton.refuses(spec, layer)


def _growth(spec: Spec, params: Params) -> float:
    """Root mean square of the summed terms, divided by the output's, for inputs with uniformly distributed codes."""
    table = params["table"].detach().double()
    scale = params["scale"].detach().double() if spec.table == "uint8" else table.new_ones(table.shape[2])
    constant = table.new_zeros(table.shape[2])
    for name in ("offset", "bias"):
        if name in params:
            constant = constant + params[name].detach().double()
    mean = table.mean(1).sum(0) * scale
    variance = (table.var(1, correction=0).sum(0) * scale.square()).sum()
    terms = mean.square().sum() + constant.square().sum() + variance
    result = (mean + constant).square().sum() + variance
    return max(1.0, float((terms / result).sqrt())) if result > 0 else 1.0


def _compiled(isa: str) -> Kernel:
    return Kernel(
        f"cpu-{isa}", partial(kernels_cpu.run, isa), kernels_cpu.pack, partial(kernels_cpu.refuses, isa), growth=_growth
    )


HASHED = frozenset({"thresholds", "centroids"})

KERNELS = (
    reference_kernel(reference, growth=_growth, linear=False),
    Kernel("torch", _torch, _pack_torch, _refuse_averages, differentiable=True, growth=_growth, frozen=HASHED),
    _compiled("scalar"),
    _compiled("avx2"),
    _compiled("avx512"),
    _compiled("avx512vnni"),
    _compiled("neon"),
    Kernel("triton", kernels_triton.run, kernels_triton.pack, _refuse_triton, growth=_growth),
)
