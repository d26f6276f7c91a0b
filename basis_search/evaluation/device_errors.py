"""Errors of a device: which are failures of one candidate, which end its process, and which end the search.

CUDA reports an error of a kernel once, and every later call of that process then fails with it: the process is of no
more use, but the device is (https://docs.nvidia.com/cuda/cuda-runtime-api, "this leaves the process in an inconsistent
state"). A device that is gone fails in every process.
"""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Iterator

import torch

from basis_search.errors import BadInput

POISONING = (
    "an illegal memory access",
    "device-side assert",
    "unspecified launch failure",
    "misaligned address",
    "an illegal instruction",
    "invalid program counter",
    "hardware stack error",
    "not supported on global/shared address space",
    "launch timed out and was terminated",
    "context is destroyed",
    "uncorrectable ecc error",
    "uncorrectable nvlink error",
    "invalid access of peer gpu memory",
    "cublas_status_execution_failed",
    "cublas_status_internal_error",
    "cuda error: unknown error",
)
"""Parts of messages after which a process can no longer use its CUDA context; in lower case."""
LOST = (
    "no cuda-capable device",
    "no cuda gpus are available",
    "invalid device ordinal",
    "device lost",
    "gpu is lost",
    "fallen off the bus",
    "busy or unavailable",
    "no nvidia driver",
    "driver initialization failed",
    "cuda unknown error",
    "system not yet initialized",
    "driver shutting down",
    "nvml_error_gpu_is_lost",
)
"""Parts of messages of a device that no process reaches any more; in lower case."""
OUT_OF_MEMORY = ("out of memory", "cublas_status_alloc_failed", "cublas_status_not_initialized")
FAILURES = (ValueError, RuntimeError, ArithmeticError)
"""What a fit or a kernel raises for a candidate that does not work; torch's own errors are RuntimeErrors."""


class PoisonedContext(BadInput):
    """An evaluation in this process made its CUDA context unusable; `reason` is the candidate's failure."""

    def __init__(self, reason: str):
        super().__init__(
            f"a candidate made the GPU unusable for this process ({reason}); evaluate candidates in a child process, "
            "with judge=basis_search.workers.subprocess_evaluator.SubprocessEvaluator() or by `basis-search search`, "
            "which ends the child and goes on"
        )
        self.reason = reason


class DeviceLost(BadInput):
    """The device is gone, for every process."""

    def __init__(self, reason: str):
        super().__init__(
            f"the device is lost ({reason}); all evaluations so far are recorded: bring it back (nvidia-smi lists it "
            "then) and give the same command to go on"
        )
        self.reason = reason


def failure(problem: Exception) -> str | None:
    """The reason of a failed evaluation for what a fit or a kernel raised; None for an error of the program itself.

    Memory that torch keeps for reuse is given back after an error for lack of it.

    Raises:
        PoisonedContext: no later call on the device works in this process.
        DeviceLost: none works in any process.
    """
    reason = described(problem)
    message = str(problem).lower()
    if not isinstance(problem, BadInput) and (isinstance(problem, RuntimeError | AssertionError) or _by_nvml(problem)):
        if any(part in message for part in LOST):
            raise DeviceLost(reason) from problem
        if any(part in message for part in POISONING):
            raise PoisonedContext(reason) from problem
    if is_out_of_memory(problem):
        traceback.clear_frames(problem.__traceback__)  # else what they hold would stay
        release_memory()
    return reason if isinstance(problem, FAILURES) or _by_triton(problem) else None


@contextlib.contextmanager
def in_one_sentence() -> Iterator[None]:
    """Errors of a device inside become a BadInput: a device that is gone, an unusable context, too little memory.

    For work on a device that is no candidate's, such as the predictions of a search.
    """
    try:
        yield
    except RuntimeError as problem:
        reason = failure(problem)
        if is_out_of_memory(problem):
            raise BadInput(f"{reason}; end other processes on the device, or search on another one") from problem
        raise


def described(problem: Exception) -> str:
    """An exception in one line, with the memory that was asked for where there was too little."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    if isinstance(problem, torch.OutOfMemoryError):
        asked = re.search(r"Tried to allocate ([\d.]+ \w+)", str(problem))
        free = re.search(r"total capacity of ([\d.]+ \w+) of which ([\d.]+ \w+) is free", str(problem))
        of = f", where {free.group(2)} of the GPU's {free.group(1)} were free" if free else ""
        return f"the GPU's memory ran out: {asked.group(1)} were asked for{of}" if asked else _line(problem, lines)
    if type(problem).__name__ in ("OutOfResources", "CompilationError"):  # the reason is below the quoted source
        return f"{type(problem).__name__}: {' '.join(lines)[-300:]}"
    return _line(problem, lines)


def _line(problem: Exception, lines: list[str]) -> str:
    """Without the advice on debugging that torch adds to CUDA errors in further lines."""
    if lines and re.search(r"CUDA error|\[CUDA\]", lines[0]):
        lines = lines[:1]
    return f"{type(problem).__name__}: {' '.join(lines)}"


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether the device's memory ran out, by torch's allocator or in a library's."""
    if isinstance(problem, torch.OutOfMemoryError):
        return True
    return isinstance(problem, RuntimeError) and any(part in str(problem).lower() for part in OUT_OF_MEMORY)


def release_memory() -> None:
    """Returns the memory that torch keeps for reuse to the device."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        with contextlib.suppress(RuntimeError):  # an earlier error is reported again; the next call meets it
            torch.cuda.empty_cache()


def _by_triton(problem: Exception) -> bool:
    """Whether it is Triton's: OutOfResources, CompilationError and others derive from Exception alone."""
    return any(base.__module__.split(".", 1)[0] == "triton" for base in type(problem).__mro__)


def _by_nvml(problem: Exception) -> bool:
    return type(problem).__module__.split(".", 1)[0] == "pynvml"
