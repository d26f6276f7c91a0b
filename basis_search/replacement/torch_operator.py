"""basis_search::structured_linear, a structured layer as one operator for torch.compile and torch.export.

y = operator(x [..., in]; tensors), [..., out]. Its gradient is that of the family's differentiable kernel. An exported
program that contains it runs wherever basis_search.torch_operator is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from basis_search.replacement.packed_parameters import PackedParameters
from basis_search.replacement.packed_parameters import version as version
from basis_search.replacement.structure import Structure as Structure  # pickled modules look for it here
from basis_search.replacement.structure import cast as cast
from basis_search.replacement.structure import parameters, parse

NAME = "basis_search::structured_linear"
BACKWARD = "basis_search::structured_linear_backward"


packed = PackedParameters(shared=True)
"""Of all structured layers that run as this operator."""


torch.library.define(
    NAME,
    "(Tensor x, Tensor[] tensors, str structure, ScalarType? dtype) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.define(
    BACKWARD,
    "(Tensor gradient, Tensor x, Tensor[] tensors, bool[] wanted, str structure, ScalarType? dtype) -> Tensor[]",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.library.impl(NAME, "default")
def _forward(x: Tensor, tensors: Sequence[Tensor], structure: str, dtype: torch.dtype | None) -> Tensor:
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        known = parse(structure)
        kernel, parameters = packed.get(known, structure, x, tensors, dtype)
        return kernel.run(known.spec, parameters, x.detach()).contiguous()


@torch.library.register_fake(NAME)  # type: ignore[untyped-decorator]
def _forward_fake(x: Tensor, tensors: Sequence[Tensor], structure: str, dtype: torch.dtype | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], parse(structure).out_features))


def _autograd() -> Any:
    """Enables autograd inside an operator: its caller may have excluded it from dispatch; gradients would be zero."""
    included, excluded = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    for key in (torch._C.DispatchKey.AutogradFunctionality, torch._C.DispatchKey.ADInplaceOrView):
        excluded = excluded.remove(key)
    return torch._C._ForceDispatchKeyGuard(included, excluded)


@torch.library.impl(BACKWARD, "default")
def _backward(
    gradient: Tensor,
    x: Tensor,
    tensors: Sequence[Tensor],
    wanted: Sequence[bool],
    structure: str,
    dtype: torch.dtype | None,
) -> list[Tensor]:
    """Gradients of x and of each tensor; an empty tensor in place of each that is not `wanted`."""
    known = parse(structure)
    with _autograd(), torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        leaves = [t.detach().requires_grad_(w) for t, w in zip((x, *tensors), wanted, strict=True)]
        kernel = known.differentiable(x.dtype, x.device)
        y = kernel.run(known.spec, kernel.pack(known.spec, parameters(known, leaves[1:], dtype)), leaves[0])
        asked = [leaf for leaf in leaves if leaf.requires_grad]
        found = iter(
            torch.autograd.grad(y, asked, gradient, allow_unused=True) if y.requires_grad else [None] * len(asked)
        )
    result = []
    for leaf in leaves:
        value = next(found) if leaf.requires_grad else None
        if value is not None:
            result.append(value.contiguous())
        else:
            result.append(
                torch.zeros_like(leaf, memory_format=torch.contiguous_format)
                if leaf.requires_grad
                else leaf.new_empty(0)
            )
    return result


@torch.library.register_fake(BACKWARD)  # type: ignore[untyped-decorator]
def _backward_fake(
    gradient: Tensor,
    x: Tensor,
    tensors: Sequence[Tensor],
    wanted: Sequence[bool],
    structure: str,
    dtype: torch.dtype | None,
) -> list[Tensor]:
    return [t.new_empty(t.shape if w else 0) for t, w in zip((x, *tensors), wanted, strict=True)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, tensors, ctx.structure, ctx.dtype = inputs
    ctx.save_for_backward(x, *tensors)
    ctx.wanted = [t.requires_grad for t in (x, *tensors)]


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    x, *tensors = ctx.saved_tensors
    found = torch.ops.basis_search.structured_linear_backward(
        gradient, x, tensors, ctx.wanted, ctx.structure, ctx.dtype
    )
    own, *others = (g if w else None for g, w in zip(found, ctx.wanted, strict=True))
    return own, others, None, None


torch.library.register_autograd(NAME, _gradients, setup_context=_setup_context)


def structured_linear(x: Tensor, tensors: Sequence[Tensor], structure: str, dtype: torch.dtype | None) -> Tensor:
    """Calls the operator; `structure` is `Structure.to_text()`, `dtype` what floating tensors are cast to, or None."""
    y: Tensor = torch.ops.basis_search.structured_linear(x, list(tensors), structure, dtype)
    return y
