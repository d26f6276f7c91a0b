"""Correctness check: every kernel that accepts a candidate, compared with the float64 reference on the timed input."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from basis_search.evaluation.device_errors import is_out_of_memory, release_memory
from basis_search.evaluation.samples import KernelCall
from basis_search.evaluation.timing import torch_threads
from basis_search.families.protocol import (
    Family,
    Kernel,
    Params,
    tolerance,
)
from basis_search.layers.layer import Layer

SHARE_FOR_REFERENCE, TENSORS_OF_REFERENCE = 0.5, 8
"""The reference may take so much of a GPU's free memory; it is assumed to need so many tensors of the input's size."""

VALUES_COMPARED = 2**27
"""Outputs compared at once on a GPU: 1 GiB in float64."""


class BeyondTolerance(Exception):
    """A kernel deviates from its reference by more than rounding explains; the message names both."""


@torch.no_grad()
def checked_kernels(
    layer: Layer, family: Family, spec: Any, params: Params, x: Tensor, threads: int
) -> tuple[dict[str, KernelCall], dict[str, float]]:
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
    exact = partial(reference.run, spec, reference.pack(spec, params))
    expected = in_rows(exact, x)
    calls: dict[str, KernelCall] = {}
    gaps: dict[str, float] = {}
    for kernel in fast:
        if kernel.by_name or kernel.refuses(spec, layer) is not None:
            continue
        call = partial(kernel.run, spec, kernel.pack(spec, params), x)
        calls[kernel.name] = KernelCall(call, partial(_on_copies, kernel, spec, params, x), x)
        with torch_threads(threads):
            gap = gaps[kernel.name] = _gap(call(), expected)
        limit = tolerance(layer.dtype, layer.in_features, kernel.growth(spec, params))
        if limit < gap < math.inf and reference.linear:
            limit *= cancellation(exact, x, expected)
        if not gap <= limit:
            raise BeyondTolerance(
                f"kernel {kernel.name!r} differs from its reference by {gap:.2e}; rounding explains at most {limit:.2e}"
            )
    return calls, gaps


def _on_copies(kernel: Kernel, spec: Any, params: Params, x: Tensor) -> Callable[[], Tensor]:
    """A call of the kernel with copies of its parameters."""
    copies = {name: tensor.clone() if isinstance(tensor, Tensor) else tensor for name, tensor in params.items()}
    return partial(kernel.run, spec, kernel.pack(spec, copies), x)


def in_rows(exact: Callable[[Tensor], Tensor], x: Tensor, signs: Tensor | None = None) -> Tensor:
    """exact(x) in float64, on a GPU in so few rows at once that its memory holds them.

    Args:
        exact: [rows, in] -> [rows, out].
        x: [rows, in] of any floating dtype.
        signs: [rows, in] of 1 and -1, on the CPU, that x is multiplied by.

    Raises:
        RuntimeError: the memory does not hold one row.
    """
    rows = len(x) if x.device.type == "cpu" else min(len(x), _rows_that_fit(x))
    done: list[Tensor] = []
    start = 0
    while start < len(x):
        part = x[start : start + rows].double()
        try:
            done.append(exact(part if signs is None else part * signs[start : start + rows].to(part)))
        except RuntimeError as problem:
            if rows == 1 or not is_out_of_memory(problem):
                raise
            rows = -(-rows // 2)
        else:
            start += rows
            continue
        release_memory()  # outside of the handler, which keeps the failed call's tensors
    return done[0] if len(done) == 1 else torch.cat(done)


def _gap(y: Tensor, expected: Tensor) -> float:
    """`relative_gap` of y to the float64 `expected`, both [rows, out], on a GPU in parts of bounded size."""
    parts = 1 if y.device.type == "cpu" else -(-y.numel() // VALUES_COMPARED)
    pairs = zip(y.chunk(parts), expected.chunk(parts), strict=True)
    difference = math.hypot(*(float((a.double() - b).norm()) for a, b in pairs))
    if math.isnan(difference):
        return math.inf
    scale = float(expected.norm())
    return difference / scale if scale > 0 else difference


def _rows_that_fit(x: Tensor) -> int:
    free = torch.cuda.mem_get_info(x.device)[0] + torch.cuda.memory_reserved(x.device)
    free -= torch.cuda.memory_allocated(x.device)
    return max(1, int(free * SHARE_FOR_REFERENCE) // (8 * TENSORS_OF_REFERENCE * x.shape[1]))


def cancellation(exact: Callable[[Tensor], Tensor], x: Tensor, expected: Tensor) -> float:
    """Ratio of a linear operator's terms to their sums: sqrt(sum_k x_k^2 ||a_k||^2) / ||A x||, at least 1.

    The numerator is estimated with random signs of the x_k. Where large terms cancel, rounding the inputs once changes
    the outputs by that factor more than `tolerance` assumes.

    Args:
        exact: the operator in float64, [rows, in] -> [rows, out].
        x: [rows, in].
        expected: [rows, out], its outputs.
    """
    signs = torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    terms = in_rows(exact, x, signs) - exact(torch.zeros_like(x[:1], dtype=torch.float64))
    scale = float(expected.norm())
    return max(1.0, float(terms.norm()) / scale) if scale > 0 else 1.0
