"""Kernels of a chain: the reference, batched GEMMs in torch, the compiled CPU kernels, the Triton kernels."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from basis_search.families.kronecker import blocks, kernels_cpu, kernels_triton
from basis_search.families.kronecker.reference import factors_of, out_features_of, reference
from basis_search.families.kronecker.spec import Spec, misfit
from basis_search.families.protocol import Kernel, Params, reference_kernel


def growth(spec: Spec, params: Params) -> float:
    """The effect of rounding intermediates relative to rounding the output, for inputs of equal variance.

    Rounding z = Q x to z (1 + e) adds P (z e), of mean square sum_j ||P[:, j]||^2 ||Q[j, :]||^2 against ||P Q||_F^2.
    """
    factors = [w.double() for w in factors_of(spec, params)]
    whole = blocks.fuse_all(factors).norm()
    effects = [whole]
    for s in range(1, len(factors)):
        left, right = blocks.fuse_all(factors[:s]), blocks.fuse_all(factors[s:])
        a, _, c, d = left.shape
        columns = left.square().sum(1).reshape(a * c * d)  # [a.c.d], squared norms of P's columns
        a, b, _, d = right.shape
        rows = right.square().sum(2).reshape(a * b * d)
        effects.append((columns * rows).sum().sqrt())
    norms: list[float] = torch.stack(effects).tolist()  # one read
    norm, rounded = norms[0], norms[1:]
    if norm == 0:
        return 1.0
    return max([1.0, *(effect / norm for effect in rounded)]) * max(1.0, len(factors) / 3)


class Batched(NamedTuple):
    """Factors as [ad, c, b] for torch.bmm, rightmost first, with their patterns; `columns` inputs, `out` outputs."""

    weights: list[Tensor]
    storages: list[tuple[int, int, int, int]]
    bias: Tensor | None
    columns: int
    out: int


def pack_batched(spec: Spec, params: Params) -> Batched:
    """The factors, rightmost first, with the block index outermost."""
    factors = factors_of(spec, params)[::-1]
    weights = [w.permute(0, 3, 2, 1).reshape(w.shape[0] * w.shape[3], w.shape[2], w.shape[1]) for w in factors]
    storages = [(w.shape[0], w.shape[1], w.shape[2], w.shape[3]) for w in factors]
    return Batched(weights, storages, params.get("bias"), spec.parsed.shape[1], out_features_of(spec, params))


def run_batched(spec: Spec, packed: Batched, x: Tensor) -> Tensor:
    """x [..., in] -> y [..., out]: permute, torch.bmm, permute for each factor."""
    lead, columns = x.shape[:-1], packed.columns
    y = torch.nn.functional.pad(x, (0, columns - x.shape[-1])) if columns > x.shape[-1] else x
    y = y.reshape(-1, columns)
    rows = y.shape[0]
    for weight, (a, b, c, d) in zip(packed.weights, packed.storages, strict=True):
        parts = y.reshape(rows, a, c, d).permute(1, 3, 0, 2).reshape(a * d, rows, c)
        y = torch.bmm(parts, weight).reshape(a, d, rows, b).permute(2, 0, 3, 1).reshape(rows, a * b * d)
    y = y[:, : packed.out]
    if packed.bias is not None:
        y = y + packed.bias
    return y.reshape(*lead, packed.out)


def _compiled(isa: str) -> Kernel:
    return Kernel(
        f"cpu-{isa}",
        partial(kernels_cpu.run, isa),
        partial(kernels_cpu.pack, isa),
        partial(kernels_cpu.refuses, isa),
        growth=growth,
    )


def _triton(name: str, precision: str, fused: bool) -> Kernel:
    return Kernel(
        name,
        partial(kernels_triton.run, precision, fused),
        kernels_triton.pack,
        partial(kernels_triton.refuses, precision),
        differentiable=True,
        growth=growth,
    )


KERNELS = (
    reference_kernel(reference, refuses=misfit, growth=growth),
    _compiled("scalar"),
    Kernel("torch", run_batched, pack_batched, misfit, differentiable=True, growth=growth),
    _compiled("avx2"),
    _compiled("avx512"),
    _triton("triton", "ieee", False),  # one launch per factor
    _triton("triton-fused", "ieee", True),  # one launch for both factors of a Monarch chain
    _triton("triton-tf32x3", "tf32x3", True),  # float32 as three tf32 products, nearly as exact
)
