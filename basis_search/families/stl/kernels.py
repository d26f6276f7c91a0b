"""Kernels of Strassen-Tile layers: reference, torch, compiled CPU and Triton kernels, slowest first."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from basis_search.families.protocol import (
    Kernel,
    Params,
    accept,
    keep,
    reference_kernel,
)
from basis_search.families.stl import kernels_cpu, kernels_triton
from basis_search.families.stl.low_rank_part import low_rank_product
from basis_search.families.stl.reference import reference
from basis_search.families.stl.spec import Spec


def growth(spec: Spec, params: Params) -> float:
    """Root mean square of the terms relative to their sum, for independent inputs of equal variance.

    The r products of an output are rounded at their size, sum_l D[c, l]^2 |E_l|^2 w_l^2, while the output after
    cancellation has the size sum_a (sum_l D[c, l] E[l, a] w_l)^2.
    """
    E, D = params["encode"].detach().double(), params["decode"].detach().double()
    w = params["weight"].detach().double().flatten(1)  # [r, K J]
    terms = float(((D**2).sum(0) * (E**2).sum(1) * (w**2).sum(1)).sum())
    # sum over c, a and tiles of (sum_l ...)^2 = sum over l, l' of (D^T D)(E E^T)(w w^T)
    total = float(((D.T @ D) * (E @ E.T) * (w @ w.T)).sum())
    return math.sqrt(max(1.0, terms / total)) if total > 0 else 1.0


def _torch(spec: Spec, params: Params, x: Tensor) -> Tensor:
    """Encode, one batched matmul over the r products, decode; all in x's dtype."""
    (tn, tk, tm), m = spec.sides, int(params["out_features"])
    encode, decode, weight = params["encode"], params["decode"], params["weight"]
    rows = x.reshape(-1, x.shape[-1])
    n, k = rows.shape
    if k % tk or n % tn:
        rows = F.pad(rows, (0, -k % tk, 0, -n % tn))
    N, K, M = rows.shape[0] // tn, rows.shape[1] // tk, weight.shape[2]
    tiles = rows.view(N, tn, K, tk).permute(1, 3, 0, 2).reshape(tn * tk, N * K)
    encoded = (encode @ tiles).view(spec.rank, N, K)
    products = torch.bmm(encoded, weight).view(spec.rank, N * M)
    y = (decode @ products).view(tn, tm, N, M).permute(2, 0, 3, 1).reshape(N * tn, M * tm)[:n, :m]
    if spec.waist:
        y = y + low_rank_product(params, x.reshape(-1, k))
    if "bias" in params:
        y = y + params["bias"]
    return y.reshape(*x.shape[:-1], m)


def _compiled(isa: str) -> Kernel:
    return Kernel(
        f"cpu-{isa}", kernels_cpu.run, partial(kernels_cpu.pack, isa), partial(kernels_cpu.refuses, isa), growth=growth
    )


def _triton(name: str, run: Callable[[Spec, Params, Tensor], Tensor], by_name: bool = False) -> Kernel:
    return Kernel(name, run, keep, kernels_triton.refuses, differentiable=True, growth=growth, by_name=by_name)


KERNELS = (
    reference_kernel(reference, growth=growth),
    Kernel("torch", _torch, keep, accept, differentiable=True, growth=growth),
    _compiled("scalar"),
    _compiled("avx2"),
    _compiled("avx512"),
    _triton("triton-fused", kernels_triton.fused, by_name=True),  # "triton" takes this way where it is faster
    _triton("triton", kernels_triton.unfused),
)
