"""Reasons for which compiled CPU kernels and Triton kernels refuse a layer, the same in every family."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch

from basis_search.layers.layer import LayerLike

NOT_INSTALLED = "the compiled CPU kernels are not installed; a C++ compiler at install time builds them"
COMPILED_DTYPES = (torch.float32, torch.bfloat16)
"""Input dtypes of the compiled CPU kernels."""

TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Input dtypes of the Triton kernels."""

LEAST_CAPABILITY = (8, 0)
"""Compute capability of the oldest GPUs that the Triton kernels are compiled for."""


def compiled_refusal(supports: Callable[[str], bool] | None, isa: str, layer: LayerLike) -> str | None:
    """Why a family's compiled kernel for an instruction set cannot run on the layer; None if it can.

    Args:
        supports: whether this CPU has an instruction set; None where the compiled module is not installed.
        isa: the kernel's instruction set.
        layer: shape, dtype and device.
    """
    if supports is None:
        return NOT_INSTALLED
    if layer.device.type != "cpu":
        return f"the layer is on {layer.device.type}, and this kernel runs on the CPU; use the torch kernel there"
    if layer.dtype not in COMPILED_DTYPES:
        return f"it takes float32 and bfloat16, not {str(layer.dtype).removeprefix('torch.')}; use the torch kernel"
    if not supports(isa):
        return f"this CPU has no {isa}; use cpu-scalar or the torch kernel"
    return None


def triton_refusal(layer: LayerLike) -> str | None:
    """Why a family's Triton kernel cannot run on the layer; None if it can."""
    if find_spec("triton") is None:
        return "triton is not installed, which comes with torch on Linux; use the torch kernel"
    if layer.device.type != "cuda":
        return f"the layer is on {layer.device.type}, and this kernel runs on CUDA devices; use the torch kernel there"
    if layer.dtype not in TRITON_DTYPES:
        name = str(layer.dtype).removeprefix("torch.")
        return f"it takes float32, float16 and bfloat16, not {name}; use the torch kernel"
    # A machine without a GPU may ask about a layer on "cuda".
    if torch.cuda.is_available() and torch.cuda.get_device_capability(layer.device) < LEAST_CAPABILITY:
        return "the GPU's compute capability is below 8.0; use the torch kernel"
    return None
