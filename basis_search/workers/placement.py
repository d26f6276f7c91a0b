"""Where the layers of a search run: the device and dtype that were asked for, and a GPU for each worker."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import torch

from basis_search.errors import BadInput
from basis_search.evaluation.timing import fingerprint
from basis_search.families import FAMILIES
from basis_search.families.protocol.refusals import LEAST_CAPABILITY
from basis_search.layers.device import known_device, usable_device
from basis_search.layers.layer import Layer

_warned: set[str] = set()


def device_of(device: str | torch.device | None, worker: int) -> torch.device | None:
    """The device of a worker: for "cuda" one of those that torch sees, in turn; None where none was asked for.

    torch sees what CUDA_VISIBLE_DEVICES names, by index, UUID or MIG name, and numbers it from 0.

    Raises:
        BadInput: layers do not run on such a device, or torch does not see it.
    """
    if device is None:
        return None
    found = known_device(device)
    if found.type == "cuda" and found.index is None and torch.cuda.is_available():
        found = torch.device("cuda", worker % max(1, torch.cuda.device_count()))
    return usable_device(found)


def placed(
    layers: Iterable[Layer], device: str | torch.device | None, dtype: str | None = None, worker: int = 0
) -> list[Layer]:
    """The layers on the worker's device and in the dtype; each keeps its own where None is given.

    A GPU that is too old for the Triton kernels is named on stderr, once.

    Raises:
        BadInput: a device or dtype in which layers do not run, a device that is not there, or float64 on a GPU.
    """
    where = device_of(device, worker)
    found = [layer.to(where, dtype) for layer in layers]
    for layer in {(layer.device, layer.dtype): layer for layer in found}.values():
        known_device(layer.device)
        fingerprint(layer.device, threads=1)
        if layer.device.type == "cuda":
            _require_dtype(layer)
            _name_excluded_kernels(layer.device)
    return found


def _require_dtype(layer: Layer) -> None:
    if layer.dtype == torch.float64:
        raise BadInput(
            f"layer {layer.name!r} runs in float64, for which a GPU has no fast kernel; search it in another dtype, "
            "with dtype=float32 (or layer.to(dtype='float32')), or on the CPU with device=cpu"
        )


def _name_excluded_kernels(device: torch.device) -> None:
    capability, name = torch.cuda.get_device_capability(device), torch.cuda.get_device_name(device)
    if capability >= LEAST_CAPABILITY or str(device) in _warned:
        return
    _warned.add(str(device))
    excluded = [
        f"{kernel.name} of {label}"
        for label, family in FAMILIES.items()
        for kernel in family.KERNELS
        if kernel.name.startswith("triton")
    ]
    print(
        f"{name} ({device}) has compute capability {_dotted(capability)}, below {_dotted(LEAST_CAPABILITY)}: these "
        f"kernels are left out: {', '.join(excluded)}; torch's own run in their place",
        file=sys.stderr,
    )


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
