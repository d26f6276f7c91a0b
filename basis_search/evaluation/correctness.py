"""Correctness check: every kernel that accepts a candidate, compared with the float64 reference on the timed input."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from basis_search.evaluation.timing import torch_threads
from basis_search.families.protocol import (
    Family,
    Kernel,
    Params,
    relative_gap,
    tolerance,
)
from basis_search.layers.layer import Layer


class BeyondTolerance(Exception):
    """A kernel deviates from its reference by more than rounding explains; the message names both."""


@torch.no_grad()
def checked_kernels(
    layer: Layer, family: Family, spec: Any, params: Params, x: Tensor, threads: int
) -> tuple[dict[str, Callable[[], Tensor]], dict[str, float]]:
    """One call of each kernel that accepts, and its relative gap to the reference, by name.

    Args:
        layer: the dense layer.
        family, spec, params: its replacement.
        x: [batch, in], on the layer's device and in its dtype.
        threads: CPU threads that kernels run with.

    Raises:
        BeyondTolerance: for the first kernel beyond its tolerance.
    """
    reference, *fast = family.KERNELS
    expected = reference.run(spec, reference.pack(spec, params), x.double())
    calls: dict[str, Callable[[], Tensor]] = {}
    gaps: dict[str, float] = {}
    for kernel in fast:
        if kernel.refuses(spec, layer) is not None:
            continue
        calls[kernel.name] = partial(kernel.run, spec, kernel.pack(spec, params), x)
        with torch_threads(threads):
            gap = gaps[kernel.name] = relative_gap(calls[kernel.name](), expected)
        limit = tolerance(layer.dtype, layer.in_features, kernel.growth(spec, params))
        if limit < gap < math.inf and reference.linear:
            limit *= cancellation(reference, spec, params, x.double(), expected)
        if not gap <= limit:
            raise BeyondTolerance(
                f"kernel {kernel.name!r} differs from its reference by {gap:.2e}; rounding explains at most {limit:.2e}"
            )
    return calls, gaps


def cancellation(reference: Kernel, spec: Any, params: Params, x: Tensor, expected: Tensor) -> float:
    """Ratio of a linear operator's terms to their sums: sqrt(sum_k x_k^2 ||a_k||^2) / ||A x||, at least 1.

    The numerator is estimated with random signs of the x_k. Where large terms cancel, rounding the inputs once changes
    the outputs by that factor more than `tolerance` assumes.

    Args:
        reference: linear.
        spec, params: the operator.
        x: [rows, in], float64.
        expected: [rows, out], the reference's outputs.
    """
    signs = torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(0)).to(x) * 2 - 1
    packed = reference.pack(spec, params)
    terms = reference.run(spec, packed, x * signs) - reference.run(spec, packed, torch.zeros_like(x[:1]))
    scale = float(expected.norm())
    return max(1.0, float(terms.norm()) / scale) if scale > 0 else 1.0
