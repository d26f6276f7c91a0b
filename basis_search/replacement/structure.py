"""Structure: a structured layer without its tensors, as the operator takes it, and its choice of kernel."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from basis_search.errors import BadInput
from basis_search.families import family as family_named
from basis_search.families.protocol import Kernel, Params, choose, spec_from_json, spec_to_json, with_size
from basis_search.layers.layer import LayerShape


@dataclass(frozen=True)
class Structure:
    """A structured layer without its tensors.

    Attributes:
        in_features, out_features, batch: of the layer.
        family, spec: the structure.
        names: of the tensors, in their order.
        prefer: the kernel to take where it accepts, or None.
        forced: only that kernel may run.
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
        """The fastest differentiable kernel that accepts, or the forced one if it is differentiable.

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
        """JSON, the operator's argument."""
        fields = {f: getattr(self, f) for f in ("in_features", "out_features", "batch", "family", "prefer", "forced")}
        return json.dumps({**fields, "spec": spec_to_json(self.spec), "names": self.names}, sort_keys=True)


@functools.lru_cache(maxsize=4096)
def parse(text: str) -> Structure:
    """The inverse of `to_text`."""
    data = json.loads(text)
    spec = spec_from_json(family_named(data["family"]), data["spec"])
    return Structure(**{**data, "spec": spec, "names": tuple(data["names"])})


def cast(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> Params:
    """Floating tensors in `dtype`, as autocast runs them; unchanged if it is None."""
    return {n: t if dtype is None or not t.is_floating_point() else t.to(dtype) for n, t in tensors.items()}


def parameters(structure: Structure, tensors: Iterable[Tensor], dtype: torch.dtype | None) -> Params:
    """A structure's tensors by name, `cast`, as a kernel's `pack` takes them.

    The number of outputs is the structure's, so that no call reads the tensor that files store.
    """
    return with_size(cast(dict(zip(structure.names, tensors, strict=True)), dtype), structure.out_features)
