"""Operators of torch that only some GPUs have: why a layer is refused, and a first run compared with the reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from basis_search.families.protocol.kernel import Kernel, Params
from basis_search.families.protocol.rounding import relative_gap, tolerance
from basis_search.layers.layer import Layer, LayerLike

DEVICE_ERROR: type[Exception] = getattr(torch, "AcceleratorError", torch.OutOfMemoryError)
"""Of torch 2.8 and later; earlier ones raise a RuntimeError."""

ROWS, IN_FEATURES, OUT_FEATURES = 33, 256, 64
"""Size of the layer of the first run; every operator that is guarded here takes it."""


ALIGNMENT = 16
"""Bytes of the widest load, at a multiple of which torch's own products expect a matrix to begin."""


def aligned_rows(x: Tensor) -> Tensor:
    """x [..., in] as a contiguous matrix [rows, in] that begins at a multiple of 16 bytes; not copied if it does."""
    rows = x.detach().reshape(-1, x.shape[-1]).contiguous()
    return rows.clone() if rows.storage_offset() * rows.element_size() % ALIGNMENT else rows


@dataclass(frozen=True)
class GpuOperator:
    """An operator of torch and the GPUs that it is meant for.

    Attributes:
        name: as a user calls it, such as "torch._scaled_mm".
        capability: least compute capability.
        dtypes: of the inputs, see `Layer.dtype`.
    """

    name: str
    capability: tuple[int, int]
    dtypes: tuple[torch.dtype, ...]

    def refusal(self, layer: LayerLike) -> str | None:
        """Why it cannot take a layer of any size on that device; None if it can."""
        if layer.device.type != "cuda":
            return f"the layer is on {layer.device.type}, and {self.name} is used on CUDA devices"
        if layer.dtype not in self.dtypes:
            names = " and ".join(str(dtype).removeprefix("torch.") for dtype in self.dtypes)
            return f"{self.name} is used in {names}, but the layer is {str(layer.dtype).removeprefix('torch.')}"
        # A machine without a GPU may ask about a layer on "cuda".
        if torch.cuda.is_available():
            found = torch.cuda.get_device_capability(layer.device)
            if found < self.capability:
                least = ".".join(map(str, self.capability))
                return f"{self.name} needs compute capability {least}, but this GPU has {found[0]}.{found[1]}"
        return None


def guarded(
    kernel: Kernel,
    operator: GpuOperator,
    sizes: Callable[[Any, LayerLike], str | None],
    fit: Callable[[Any, Layer], Params],
    reference: Callable[[Any, Params, Tensor], Tensor],
) -> Kernel:
    """The kernel, which refuses where its operator is missing, does not take the layer or is wrong.

    Args:
        kernel: calls the operator in `run`.
        operator: what it calls.
        sizes: (spec, layer) -> why the operator does not take the layer's sizes, or None.
        fit, reference: of the family; a small layer is fitted and run once per spec, dtype and GPU.
    """

    @cache
    def first_run(spec: Any, dtype: torch.dtype, device: torch.device, gpu: str) -> str | None:
        return difference(kernel, spec, small_layer(dtype, device), fit, reference)

    def refuses(spec: Any, layer: LayerLike) -> str | None:
        reason = operator.refusal(layer) or sizes(spec, layer)
        if reason is None and torch.cuda.is_available():
            gpu = torch.cuda.get_device_properties(layer.device).name
            reason = first_run(spec, layer.dtype, layer.device, gpu)
            return None if reason is None else f"{operator.name} {reason}"
        return reason

    return dataclasses.replace(kernel, refuses=refuses)


def small_layer(dtype: torch.dtype, device: torch.device) -> Layer:
    """A layer of random weights with a bias for a first run."""
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(ROWS, IN_FEATURES, generator=draw)
    weight = torch.randn(OUT_FEATURES, IN_FEATURES, generator=draw) / IN_FEATURES**0.5
    bias = torch.randn(OUT_FEATURES, generator=draw)
    return Layer("first run", weight, bias, inputs, inputs[:1], batch=ROWS, dtype=dtype, device=device)


def difference(
    kernel: Kernel,
    spec: Any,
    layer: Layer,
    fit: Callable[[Any, Layer], Params],
    reference: Callable[[Any, Params, Tensor], Tensor],
) -> str | None:
    """None if the kernel agrees with the reference on the layer's inputs up to rounding, else what is wrong."""
    try:
        params = fit(spec, layer)
        with torch.no_grad():
            x = layer.inputs.to(layer.device, layer.dtype)
            y = kernel.run(spec, kernel.pack(spec, params), x)
            gap = relative_gap(y, reference(spec, params, x.double()))
            limit = tolerance(layer.dtype, layer.in_features, kernel.growth(spec, params))
    except (RuntimeError, AttributeError, TypeError, ValueError) as problem:
        if isinstance(problem, (torch.OutOfMemoryError, DEVICE_ERROR)):
            raise  # passes, or ends the process: no property of the operator
        text = str(problem).strip() or type(problem).__name__
        return f"does not run here ({text.splitlines()[0].split('. ')[0]})"  # torch goes on with a list of backends
    if not gap <= limit:
        return f"is off by {gap:.1e} on a small layer here, where rounding explains {limit:.1e}"
    return None
