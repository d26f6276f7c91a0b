"""Where and in which dtype a layer may run: a CPU or a CUDA device that torch sees, in a floating dtype."""

from __future__ import annotations

import torch

from basis_search.errors import BadInput, near_miss

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def known_device(device: str | int | torch.device) -> torch.device:
    """The device, of a type on which layers run; this machine may lack it.

    Raises:
        BadInput: not a device, or not a CPU or CUDA device.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as problem:
        raise BadInput(f"{device!r} is not a device; give 'cpu', 'cuda' or 'cuda:<index>'") from problem
    if found.type == "cpu":
        return torch.device("cpu")
    if found.type == "meta":
        raise BadInput("a layer cannot run on the meta device, which holds no values; give 'cpu' or 'cuda'")
    if found.type != "cuda":
        raise BadInput(f"layers run on 'cpu' and 'cuda' devices, not on {str(found)!r}; give one of these")
    return found


def usable_device(device: str | int | torch.device) -> torch.device:
    """The device, with its index if it is a CUDA device.

    Raises:
        BadInput: not a device, not a CPU or CUDA device, or a CUDA device that torch does not see.
    """
    found = known_device(device)
    if found.type == "cpu":
        return found
    if not torch.cuda.is_available():
        raise BadInput(
            f"the device is {str(found)!r}, but torch {torch.__version__} sees no CUDA GPU here; use device='cpu', or "
            "a build of torch for CUDA on a machine with a GPU and its driver"
        )
    if found.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    if found.index >= torch.cuda.device_count():
        known = ", ".join(f"cuda:{index}" for index in range(torch.cuda.device_count()))
        raise BadInput(f"there is no device {str(found)!r}; torch sees: {known} (see CUDA_VISIBLE_DEVICES)")
    return found


def usable_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A floating dtype in which layers run; "bfloat16" and "torch.bfloat16" name one.

    Raises:
        BadInput: no dtype, or one in which no dense layer runs.
    """
    known = {str(d).removeprefix("torch."): d for d in DTYPES}
    name = str(dtype).removeprefix("torch.")
    if name not in known:
        raise BadInput(f"a layer cannot run in the dtype {name!r}{near_miss(name, list(known))}")
    return known[name]


def is_on(tensor: torch.Tensor, device: torch.device) -> bool:
    """Whether the tensor lies on the device; a device without an index means any of its type."""
    return tensor.device.type == device.type and device.index in (None, tensor.device.index)
