"""Product of a chain with a batch: y = x (K_1 ... K_L)^T batch-size-first, K_1 ... K_L x batch-size-last."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from basis_search.errors import BadInput, near_miss
from basis_search.families.kronecker import blocks, kernels_cpu, kernels_triton
from basis_search.families.kronecker.patterns import KroneckerChain, KroneckerPattern
from basis_search.families.protocol import TRITON_DTYPES

LAYOUTS = ("bsf", "bsl")


def multiply(x: Tensor, factors: Sequence[Tensor], layout: str = "bsf", *, precision: str = "ieee") -> Tensor:
    """The product of a chain with a batch, by the fastest kernel for its device and dtype.

    Args:
        x: [..., N] in layout "bsf" (batch-size-first, torch's order), [N, ...] in layout "bsl" (batch-size-last).
        factors: stored values [a, b, c, d], leftmost first, of x's dtype; they must compose, but need not be chainable.
        layout: of x and of the result.
        precision: of float32 products on a GPU: "ieee", "tf32x3" (nearly as exact) or "tf32".

    Returns:
        [..., M] or [M, ...]; differentiable in x and the factors.

    Raises:
        BadInput: the factors do not compose, x has another width than the chain, the layout or precision is unknown, or
            dtypes or devices differ.
    """
    if layout not in LAYOUTS:
        raise BadInput(f"there is no layout {layout!r}{near_miss(str(layout), LAYOUTS)}")
    if precision not in ("ieee", "tf32", "tf32x3"):
        raise BadInput(f"there is no precision {precision!r}{near_miss(str(precision), ('ieee', 'tf32', 'tf32x3'))}")
    last = layout == "bsl"
    columns = _checked(x, factors, last)
    lead = x.shape[1:] if last else x.shape[:-1]
    rows = x.reshape(columns, -1) if last else x.reshape(-1, columns)
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *factors))
    if kernels_triton.runs_on(x.device) and x.dtype in TRITON_DTYPES:
        packed = [kernels_triton.packed_factor(w) for w in reversed(factors)]
        y = kernels_triton.chain(rows, packed, last=last, precision=precision)
    elif not wanted and (isa := kernels_cpu.fastest(x)) is not None:
        y = kernels_cpu.multiply(isa, rows, factors, last)
    else:
        y = rows
        for w in reversed(factors):
            y = blocks.apply_last(w, y) if last else blocks.apply(w, y)
    return y.reshape(y.shape[0], *lead) if last else y.reshape(*lead, y.shape[1])


def _checked(x: Tensor, factors: Sequence[Tensor], last: bool) -> int:
    """The width of x, checked against the factors."""
    if x.ndim == 0:
        raise BadInput("x has no dimensions, but at least the features are needed: [N] or [batch, N]")
    for index, w in enumerate(factors):
        if w.ndim != 4:
            raise BadInput(f"factor {index} has shape {tuple(w.shape)}, but [a, b, c, d] is needed")
        if w.dtype != x.dtype or w.device != x.device:
            raise BadInput(
                f"factor {index} is {w.dtype} on {w.device}, but x is {x.dtype} on {x.device}; make them equal"
            )
    chain = KroneckerChain(tuple(KroneckerPattern(*w.shape) for w in factors))
    width, columns = x.shape[0 if last else -1], chain.shape[1]
    if width != columns:
        where = "first" if last else "last"
        raise BadInput(f"the {where} dimension of x is {width}, but the chain {chain} has {columns} columns")
    return columns
