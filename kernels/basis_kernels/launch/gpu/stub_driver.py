"""A driver that compiles for a GPU that is not there and launches nothing: for measuring the host's part of a launch.

All of Triton's Python runs as on a GPU, its own launcher class included; the C function that reads the arguments and
calls the CUDA driver is replaced by one that returns. Tensors are on the CPU, and results are whatever memory held.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia

from basis_kernels.launch.gpu.launcher import forget

CPU_INDEX = -1
"""What `Tensor.get_device` says of a tensor on the CPU."""


def _nothing(*arguments: object) -> None:
    return None


class _Utils:
    """The functions of Triton's compiled module that a launch needs."""

    launch = staticmethod(_nothing)

    def build_signature_metadata(self, signature: object) -> bytes:
        return b""

    def load_binary(self, *arguments: object) -> tuple[int, int, int, int, int]:
        return 1, 1, 0, 0, 1024  # module, function, registers, spills, threads

    def unload_module(self, module: object) -> None:
        return None

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 << 10, "multiprocessor_count": 132}


class _BareLauncher:
    """In place of a launcher that Triton before 3.7 compiles in C for each kernel."""

    def __init__(self, source: object, metadata: object):
        pass

    def __call__(self, *arguments: object) -> None:
        return None


class _Driver:
    utils = _Utils()
    launcher_cls: Any = nvidia.CudaLauncher if hasattr(nvidia, "annotate_arguments") else _BareLauncher

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_device(self) -> int:
        return CPU_INDEX

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_capability(self, device: int) -> tuple[int, int]:
        return divmod(self.capability, 10)

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Callable[..., list[float]]:
        return lambda call, quantiles, **options: [1.0] * len(quantiles)


@contextlib.contextmanager
def stub_driver(capability: int = 90) -> Iterator[None]:
    """Kernels called within the context are compiled for that compute capability, and not launched."""
    config = triton.runtime.driver
    before = getattr(config, "_active", None)
    with contextlib.ExitStack() as stack:
        if hasattr(nvidia, "annotate_arguments"):  # these come from the C module that is not loaded
            for name in ("PyKernelArg", "ARG_CONSTEXPR", "ARG_KERNEL", "ARG_TUPLE"):
                stack.enter_context(mock.patch.object(nvidia, name, mock.MagicMock(), create=True))
        config.set_active(_Driver(capability))
        try:
            yield
        finally:
            forget()  # compiled kernels ask the driver that loaded them to unload them
            config._active = before
