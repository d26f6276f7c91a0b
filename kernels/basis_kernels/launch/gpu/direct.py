"""Launches of kernels that Triton has compiled, without Triton's own handling of arguments.

`JITFunction.run` binds, specialises and hashes all arguments in Python, tens of microseconds for the kernels here. Once
it has compiled a kernel, `CompiledKernel.run` with the same arguments does the same launch. Its parameters are not
documented, so the text of the call in `JITFunction.run` is compared first; where it differs, Triton launches. Tensors
are passed by address, as Triton's launcher allows, which saves it a query of the CUDA driver for each.
"""

from __future__ import annotations

import inspect
import re
from functools import cache
from typing import Any

import torch
import triton
from triton.runtime.jit import JITFunction

CALL = (
    "kernel.run(grid_0, grid_1, grid_2, stream, kernel.function, kernel.packed_metadata, launch_metadata, "
    "knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook, *bound_args.values())"
)
"""How Triton 3.4 to 3.9 launch a compiled kernel."""


@cache
def refusal() -> str | None:
    """Why kernels cannot be launched directly with this Triton; None if they can."""
    source = re.sub(r"\s+", " ", inspect.getsource(JITFunction.run))
    if CALL not in source:
        return f"Triton {triton.__version__} launches compiled kernels in another way than 3.4 to 3.9"
    return None


_runtime = getattr(getattr(triton, "knobs", None), "runtime", None)
_CHAINS = hasattr(getattr(_runtime, "launch_enter_hook", None), "calls")
"""Whether hooks are chains of functions, as from Triton 3.5 on, or one function or None."""


def hooked(kernel: Any) -> bool:
    """Whether a profiler or another hook wants to see launches, which Triton's own way calls."""
    enter, leave = _runtime.launch_enter_hook, _runtime.launch_exit_hook  # type: ignore[union-attr]
    if _CHAINS and enter is not None and leave is not None:
        enter, leave = enter.calls, leave.calls
    return bool(enter or leave or kernel.pre_run_hooks)


GIVEN_WHOLE = (
    "self.launch(gridX, gridY, gridZ, stream, function, self.launch_cooperative_grid, self.launch_pdl, "
    "kernel_metadata, launch_metadata, launch_enter_hook, launch_exit_hook, global_scratch, profile_scratch, "
    "self.arg_annotations, self.kernel_signature, kernel_args)"
)
"""How Triton 3.9's launcher calls its C function."""
GIVEN_ONE_BY_ONE = (
    "self.launch(gridX, gridY, gridZ, stream, function, self.launch_cooperative_grid, self.launch_pdl, global_scratch, "
    "profile_scratch, *args)"
)
"""How that of Triton 3.6 does."""


_texts: dict[str, str] = {}


def _text(launcher: Any) -> str:
    """The text of its class' `__call__`."""
    kind = type(launcher)
    if kind.__qualname__ not in _texts:
        _texts[kind.__qualname__] = re.sub(r"\s+", " ", inspect.getsource(kind.__call__))
    return _texts[kind.__qualname__]


def _c_function(launcher: Any, metadata: Any) -> tuple[Any, tuple[Any, ...], bool]:
    """The C function behind Triton's launcher, what it takes between the kernel and the arguments, and if as a tuple.

    That saves a microsecond, which the launcher spends on scratch memory that no kernel here needs. Where its text is
    another, the launcher itself is returned.
    """
    sizes = [getattr(launcher, name, None) for name in ("global_scratch_size", "profile_scratch_size")]
    if sizes == [0, 0] and not getattr(launcher, "gsan_enabled", False):
        options = (launcher.launch_cooperative_grid, launcher.launch_pdl)
        if GIVEN_WHOLE in _text(launcher):
            kinds = (launcher.arg_annotations, launcher.kernel_signature)
            return launcher.launch, (*options, metadata, None, None, None, None, None, *kinds), True
        if GIVEN_ONE_BY_ONE in _text(launcher):
            return launcher.launch, (*options, None, None, metadata, None, None, None), False
    return launcher, (metadata, None, None, None), False


class Launch:
    """One compiled kernel with its grid and all arguments but the tensors."""

    __slots__ = ("current_device", "function", "grid", "middle", "run", "stream", "tail", "whole")

    def __init__(self, compiled: Any, grid: tuple[int, ...], tail: tuple[Any, ...]):
        driver = triton.runtime.driver.active
        self.run, self.middle, self.whole = _c_function(compiled.run, compiled.packed_metadata)
        self.grid, self.function, self.tail = (*grid, 1, 1)[:3], compiled.function, tail
        self.current_device, self.stream = driver.get_current_device, driver.get_current_stream

    def __call__(self, device: int, pointers: list[int]) -> None:
        """Launches in the current stream of that device, made the current one if it is not."""
        if self.current_device() != device:
            with torch.cuda.device(device):
                return self(device, pointers)
        if self.whole:
            self.run(*self.grid, self.stream(device), self.function, *self.middle, (*pointers, *self.tail))
        else:
            self.run(*self.grid, self.stream(device), self.function, *self.middle, *pointers, *self.tail)
        return None


def specialisation(integers: tuple[int, ...]) -> tuple[int, ...]:
    """The properties of integers that Triton compiles for: equal to 1, divisible by 16, wider than 32 bits."""
    return tuple(1 if v == 1 else (2 if v % 16 else 3) + (4 if not -(1 << 31) <= v < 1 << 31 else 0) for v in integers)


def misaligned(pointers: list[int]) -> tuple[bool, ...]:
    """Which addresses are no multiples of 16 bytes."""
    return tuple(pointer % 16 != 0 for pointer in pointers)
