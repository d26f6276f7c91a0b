"""A test double of two CUDA devices, for machines without one.

    with pretend_cuda() as cuda:
        model.to("cuda")
        layers = bs.capture(model, batches)
        with cuda.synchronization_raises():
            model(x)
        assert cuda.synchronizations == 0

Tensors on it say that they are on cuda:0 or cuda:1, compute on the CPU and refuse to mix with CPU tensors, in the words
of a real device. What makes the host wait for the device is counted: copies between both, `item`, `tolist`, truth
values, `nonzero`, masks as indices, checked linear algebra. `torch.cuda` answers as on a machine with two GPUs of
compute capability 9.0 with a small second-level cache; a CUDA graph records operators and replays them. Gradients work.

What it cannot show:

- kernels: Triton refuses inside, as if it were not installed, and torch's operators for CUDA alone fail;
- speed and order: events measure the CPU, streams are one;
- memory: a limit for each tensor, none for their sum; no pinned memory;
- errors that arrive late, such as an illegal access, and a context that is unusable after one;
- rounding: sums are added in the CPU's order, there is no tf32;
- `torch.compile`, autocast of torch's own operators, other processes, and tensors made in other threads;
- C++ code that asks a tensor for its device, such as `torch.tensor(tensor)`, which is answered "cpu".
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # reads torch.cuda.is_available() when first imported
import torch._inductor
from fake_cuda_devices import FakeCuda, active, generators, located
from fake_cuda_tensor import FakeCudaTensor, NamedDevices, Operators

__all__ = ["FakeCuda", "FakeCudaTensor", "pretend_cuda"]


@contextlib.contextmanager
def pretend_cuda(memory_bytes: int = 80 << 30, capability: tuple[int, int] = (9, 0)) -> Iterator[FakeCuda]:
    """Pretends that the machine has two CUDA devices, each with that much memory, and yields what happens on them."""
    cuda, future = FakeCuda(memory_bytes), torch.__future__
    before, swaps = active.cuda, future.get_swap_module_params_on_conversion()
    with contextlib.ExitStack() as stack:
        for name, answer in _answers(cuda, capability).items():
            stack.enter_context(mock.patch(f"torch.cuda.{name}", answer))
        stack.enter_context(mock.patch("torch.Generator", _Generator))
        stack.enter_context(_without_triton())
        stack.enter_context(Operators())
        stack.enter_context(NamedDevices())
        active.cuda = cuda
        # module.to() would keep the class of its parameters; swapping keeps their identity.
        future.set_swap_module_params_on_conversion(True)
        try:
            yield cuda
        finally:
            future.set_swap_module_params_on_conversion(swaps)
            active.cuda = before


@contextlib.contextmanager
def _without_triton() -> Iterator[None]:
    """Imports of triton fail inside; other modules that are imported first inside stay."""
    modules: dict[str, Any] = sys.modules
    found = {name: modules[name] for name in modules if name.split(".")[0] == "triton"}
    modules.update(dict.fromkeys({*found, "triton"}))
    try:
        yield
    finally:
        modules.pop("triton")
        modules.update(found)


class _Event:
    """torch.cuda.Event by the CPU's clock."""

    def __init__(self, enable_timing: bool = False, **options: Any):
        self.time: float | None = None

    def record(self, stream: Any = None) -> None:
        self.time = time.perf_counter()

    def elapsed_time(self, end: _Event) -> float:
        assert self.time is not None, "the event was not recorded"
        assert end.time is not None, "the end event was not recorded"
        return (end.time - self.time) * 1e3

    def query(self) -> bool:
        return True

    def synchronize(self) -> None: ...
    def wait(self, stream: Any = None) -> None: ...


class _Stream:
    """torch.cuda.Stream; everything on it has run."""

    cuda_stream = 0

    def __init__(self, device: Any = None, **options: Any):
        self.device = located("cuda" if device is None else device)

    def record_event(self, event: _Event | None = None) -> _Event:
        event = event or _Event()
        event.record()
        return event

    def query(self) -> bool:
        return True

    def synchronize(self) -> None: ...
    def wait_stream(self, stream: Any) -> None: ...
    def wait_event(self, event: Any) -> None: ...


class _Graph:
    """torch.cuda.CUDAGraph: the operators that ran while it was captured, run again on the same tensors."""

    def __init__(self, keep_graph: bool = False):
        self.operators: list[Callable[[], None]] = []

    def capture_begin(self, *options: Any, **named: Any) -> None:
        assert active.cuda is not None, "a pretended graph is captured inside pretend_cuda()"
        self.operators = active.cuda.recorded = []

    def capture_end(self) -> None:
        assert active.cuda is not None
        active.cuda.recorded = None

    def replay(self) -> None:
        for operator in self.operators:
            operator()

    def reset(self) -> None:
        self.operators = []

    def pool(self) -> tuple[int, int]:
        return (0, 0)


@contextlib.contextmanager
def _graph(graph: _Graph, *options: Any, **named: Any) -> Iterator[None]:
    graph.capture_begin()
    try:
        yield
    finally:
        graph.capture_end()


class _GeneratorType(type(torch._C.Generator)):  # type: ignore[misc]
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, torch._C.Generator)


class _Generator(torch._C.Generator, metaclass=_GeneratorType):
    """torch.Generator on any device; it draws the CPU's numbers."""

    def __new__(cls, device: Any = "cpu") -> Any:
        if torch.device(device).type == "cpu":
            return torch._C.Generator(device)
        return super().__new__(cls, "cpu")

    def __init__(self, device: Any = "cpu"):
        self._located = located(device)
        generators[self._cdata] = self

    device = property(lambda self: self._located)


def _answers(cuda: FakeCuda, capability: tuple[int, int]) -> dict[str, Any]:
    """What names of torch.cuda are, inside."""
    major, minor = capability

    def properties(device: Any = None) -> SimpleNamespace:
        index = cuda.current if device is None else located(device).index
        return SimpleNamespace(
            name="Pretended GPU", major=major, minor=minor, uuid=f"pretended-{index}", total_memory=cuda.memory_bytes,
            multi_processor_count=132, L2_cache_size=1 << 16, warp_size=32, regs_per_multiprocessor=65536,
            shared_memory_per_block=48 << 10, shared_memory_per_block_optin=227 << 10,
            shared_memory_per_multiprocessor=228 << 10, max_threads_per_multi_processor=2048, is_integrated=0,
        )  # fmt: skip

    @contextlib.contextmanager
    def device(chosen: Any) -> Iterator[None]:
        before = cuda.current
        cuda.current = before if chosen is None else located(chosen).index
        try:
            yield
        finally:
            cuda.current = before

    def nothing(*args: Any, **kwargs: Any) -> None: ...

    def set_device(chosen: Any) -> None:
        cuda.current = located(chosen).index

    def set_sync_debug_mode(mode: str | int) -> None:
        cuda.sync_debug_mode = mode if isinstance(mode, str) else ("default", "warn", "error")[mode]

    return {
        "_lazy_init": nothing, "is_available": lambda: True, "is_bf16_supported": lambda *a, **k: True,
        "device_count": lambda: cuda.devices, "current_device": lambda: cuda.current, "set_device": set_device,
        "device": device, "device_of": lambda tensor: device(tensor.device),
        "get_device_properties": properties, "get_device_name": lambda device=None: properties(device).name,
        "get_device_capability": lambda device=None: (located("cuda" if device is None else device), capability)[1],
        "mem_get_info": lambda device=None: (cuda.memory_bytes, cuda.memory_bytes),
        "memory_allocated": lambda device=None: 0, "max_memory_allocated": lambda device=None: 0,
        "memory_reserved": lambda device=None: 0, "reset_peak_memory_stats": nothing, "empty_cache": nothing,
        "synchronize": nothing, "manual_seed": nothing, "manual_seed_all": nothing,
        "get_rng_state": lambda device="cuda": torch.get_rng_state(), "set_rng_state": nothing,
        "set_sync_debug_mode": set_sync_debug_mode,
        "get_sync_debug_mode": lambda: ("default", "warn", "error").index(cuda.sync_debug_mode),
        "Event": _Event, "Stream": _Stream, "current_stream": _Stream, "default_stream": _Stream,
        "stream": lambda stream: contextlib.nullcontext(), "CUDAGraph": _Graph, "graph": _graph,
        "graph_pool_handle": lambda: (0, 0), "is_current_stream_capturing": lambda: cuda.recorded is not None,
    }  # fmt: skip
