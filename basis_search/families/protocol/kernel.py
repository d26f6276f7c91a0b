"""Kernels: the ways to run one operator, and the choice among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from basis_search.errors import BadInput, near_miss
from basis_search.families.protocol.sizes import with_size
from basis_search.layers.layer import LayerLike

Params = dict[str, Tensor]
"""A fitted operator in its family's one canonical layout; "bias" [out] is present when the layer has one."""


def _no_growth(spec: Any, params: Params) -> float:
    return 1.0


@dataclass(frozen=True)
class Kernel:
    """One way to run an operator.

    Attributes:
        name: "reference", "torch", "cpu-scalar", "cpu-avx2", "triton", ...
        run: (spec, packed, x [..., in]) -> y [..., out] in x's dtype, the bias included. It reads no tensor's value
            into Python.
        pack: (spec, params) -> the parameters in the form that `run` takes; called once per set of parameters. For a
            differentiable kernel it is itself differentiable. "out_features" among the parameters may be a tensor or,
            in a `StructuredLinear`, a Python number; `int` takes both.
        refuses: (spec, layer) -> None where the kernel can run, else a sentence with the reason.
        differentiable: gradients reach the parameters (and the input where the operator has a gradient).
        growth: (spec, params) -> factor on the rounding tolerance where terms of the operator cancel.
        frozen: names of parameters that no gradient reaches, such as the thresholds of a hash.
        linear: the operator is linear in x, apart from its bias and from rounding.
        straight_through: the input's gradient passes a rounding step unchanged, so it differs from finite differences.
        by_name: runs only where it is asked for by name; searches do not time it, and no default chooses it.
    """

    name: str
    run: Callable[[Any, Any, Tensor], Tensor]
    pack: Callable[[Any, Params], Any]
    refuses: Callable[[Any, LayerLike], str | None]
    differentiable: bool = False
    growth: Callable[[Any, Params], float] = _no_growth
    frozen: frozenset[str] = frozenset()
    linear: bool = False
    straight_through: bool = False
    by_name: bool = False


def keep(spec: Any, params: Params) -> Params:
    """A `pack` that returns the parameters unchanged, apart from "out_features", which becomes a Python number."""
    return with_size(params)


def accept(spec: Any, layer: LayerLike) -> None:
    """A `refuses` that accepts every layer."""
    return


def reference_kernel(
    reference: Callable[[Any, Params, Tensor], Tensor],
    *,
    refuses: Callable[[Any, LayerLike], str | None] = accept,
    differentiable: bool = True,
    growth: Callable[[Any, Params], float] = _no_growth,
    linear: bool = True,
) -> Kernel:
    """The kernel "reference": a family's float64 definition, its result converted to x's dtype."""

    def run(spec: Any, params: Params, x: Tensor) -> Tensor:
        return reference(spec, params, x).to(x.dtype)

    return Kernel("reference", run, keep, refuses, differentiable=differentiable, growth=growth, linear=linear)


def choose(kernels: Sequence[Kernel], spec: Any, layer: LayerLike, name: str | None = None) -> Kernel:
    """The last of `kernels` that accepts the layer, which is the fastest, or the kernel called `name`.

    Raises:
        BadInput: no kernel has that name, or it refuses, or all refuse; the sentence gives the reasons.
    """
    if name is not None:
        for kernel in kernels:
            if kernel.name == name:
                reason = kernel.refuses(spec, layer)
                if reason is not None:
                    raise BadInput(f"the kernel {name!r} refuses: {reason}")
                return kernel
        raise BadInput(f"there is no kernel {name!r} here{near_miss(name, [k.name for k in kernels])}")
    reasons = []
    for kernel in reversed([k for k in kernels if not k.by_name]):
        reason = kernel.refuses(spec, layer)
        if reason is None:
            return kernel
        reasons.append(f"{kernel.name}: {reason}")
    raise BadInput("every kernel refuses: " + "; ".join(reasons))
