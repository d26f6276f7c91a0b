"""basis_search::structured_linear, the operator that torch.compile and torch.export see: y = operator(x; tensors).

It has a fake kernel (y has x's leading shape and `out_features` columns) and a formula for its gradient, the one of the
family's differentiable kernel. An exported program that holds it runs wherever basis_search is imported.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from basis_search.errors import BadInput
from basis_search.families import family as family_named
from basis_search.families.protocol import (
    Kernel,
    Params,
    choose,
    keep,
    spec_from_json,
    spec_to_json,
)
from basis_search.layers.layer import LayerShape

NAME = "basis_search::structured_linear"
BACKWARD = "basis_search::structured_linear_backward"


@dataclass(frozen=True)
class Structure:
    """What the operator knows beside its tensors.

    Attributes:
        in_features, out_features, batch: of the layer.
        family, spec: the structure.
        names: of the tensors, in their order.
        prefer: the kernel to take where it accepts, or None.
        forced: whether that kernel alone will do.
    """

    in_features: int
    out_features: int
    batch: int
    family: str
    spec: Any
    names: tuple[str, ...]
    prefer: str | None = None
    forced: bool = False

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        return family_named(self.family).KERNELS

    def choose(self, dtype: torch.dtype, device: torch.device) -> Kernel:
        """The kernel for calls without gradients: the preferred one where it accepts, else the fastest that does."""
        shape = LayerShape(self.in_features, self.out_features, self.batch, dtype, device)
        if self.prefer is not None:
            if self.forced:
                return choose(self.kernels, self.spec, shape, self.prefer)
            for kernel in self.kernels:
                if kernel.name == self.prefer and kernel.refuses(self.spec, shape) is None:
                    return kernel
        return choose(self.kernels, self.spec, shape)

    def differentiable(self, dtype: torch.dtype, device: torch.device) -> Kernel:
        """The fastest kernel that lets gradients through, or the forced one if it does.

        Raises:
            BadInput: the forced kernel gives no gradients.
        """
        if self.forced:
            kernel = self.choose(dtype, device)
            if not kernel.differentiable:
                raise BadInput(f"the kernel {kernel.name!r} gives no gradients; run under torch.no_grad() or use(None)")
            return kernel
        shape = LayerShape(self.in_features, self.out_features, self.batch, dtype, device)
        return choose([k for k in self.kernels if k.differentiable], self.spec, shape)

    def to_text(self) -> str:
        """As the operator's argument."""
        fields = {f: getattr(self, f) for f in ("in_features", "out_features", "batch", "family", "prefer", "forced")}
        return json.dumps({**fields, "spec": spec_to_json(self.spec), "names": self.names}, sort_keys=True)


@functools.lru_cache(maxsize=4096)
def _parse(text: str) -> Structure:
    data = json.loads(text)
    spec = spec_from_json(family_named(data["family"]), data["spec"])
    return Structure(**{**data, "spec": spec, "names": tuple(data["names"])})


def cast(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> Params:
    """Floating tensors in `dtype`, as autocast wants them; all as they are if it is None."""
    return {n: t if dtype is None or not t.is_floating_point() else t.to(dtype) for n, t in tensors.items()}


def version(tensor: Tensor) -> int:
    """Grows with each change in place; inference tensors, which nobody counts, stay at 0."""
    return 0 if tensor.is_inference() else tensor._version


@dataclass(frozen=True)
class _Packed:
    versions: tuple[int, ...]
    storages: tuple[StorageWeakRef, ...]
    kernel: Kernel
    value: Any

    def lives(self) -> bool:
        return not any(s.expired() for s in self.storages)  # type: ignore[no-untyped-call]


_packed: dict[tuple[Any, ...], _Packed] = {}
"""By structure, dtype and storages; an entry holds copies, not the tensors themselves, and goes when they have gone."""


def _pack(structure: str, x: Tensor, tensors: Sequence[Tensor], dtype: torch.dtype | None) -> tuple[Kernel, Any]:
    known = _parse(structure)
    storages = [t.untyped_storage() for t in tensors]
    where = ((s._cdata, t.storage_offset(), t.dtype) for s, t in zip(storages, tensors, strict=True))
    key = (structure, x.dtype, x.device, dtype, *where)
    versions = tuple(version(t) for t in tensors)
    entry = _packed.get(key)
    if entry is not None and entry.versions == versions and entry.lives():
        return entry.kernel, entry.value
    kernel = known.choose(x.dtype, x.device)
    named = cast(dict(zip(known.names, (t.detach() for t in tensors), strict=True)), dtype)
    if kernel.pack is keep:
        return kernel, named
    for old in [k for k, e in _packed.items() if not e.lives()]:
        del _packed[old]
    value = kernel.pack(known.spec, {n: t.clone() for n, t in named.items()})
    _packed[key] = _Packed(versions, tuple(map(StorageWeakRef, storages)), kernel, value)
    return kernel, value


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
        kernel, packed = _pack(structure, x, tensors, dtype)
        return kernel.run(_parse(structure).spec, packed, x.detach()).contiguous()


@torch.library.register_fake(NAME)  # type: ignore[untyped-decorator]
def _forward_fake(x: Tensor, tensors: Sequence[Tensor], structure: str, dtype: torch.dtype | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], _parse(structure).out_features))


def _autograd() -> Any:
    """Autograd inside an operator: its caller may have left it out of the dispatch, and gradients would be zero."""
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
    """The gradients that are wanted, of x and of each tensor; an empty tensor stands for each that is not."""
    known = _parse(structure)
    with _autograd(), torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        leaves = [t.detach().requires_grad_(w) for t, w in zip((x, *tensors), wanted, strict=True)]
        kernel = known.differentiable(x.dtype, x.device)
        named = cast(dict(zip(known.names, leaves[1:], strict=True)), dtype)
        y = kernel.run(known.spec, kernel.pack(known.spec, named), leaves[0])
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
    """The operator; see `Structure.to_text` for its third argument."""
    y: Tensor = torch.ops.basis_search.structured_linear(x, list(tensors), structure, dtype)
    return y
