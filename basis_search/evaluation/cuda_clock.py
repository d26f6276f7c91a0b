"""A CUDA device as a clock: events around calls, CUDA graphs of calls, and the state of the second-level cache.

Everything of `torch.cuda` that timing needs is in `CudaClock`, so that tests put another one in its place.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from basis_search.evaluation.device_errors import PoisonedContext, described, is_out_of_memory

USUAL_CACHE_BYTES = 64 << 20
"""Of the second-level cache, where torch does not say."""
FLUSHED_CACHES = 4
"""Zeros are written over so many times the size of the cache, since it does not replace the oldest lines first."""
WARM_SECONDS, COLD_AFTER_SECONDS = 0.1, 1.0
"""A GPU raises its clocks under load: it is given so much work before it is timed, if it was not timed so recently."""
HOST_BATCHES, HOST_CALLS = 7, 16
"""So many calls are launched without waiting; more could fill the queue of launches, and then the host does wait."""
LARGEST_REPLAY_GAP = 1e-2
"""Relative difference between a replayed and an eager output above which a graph does not hold the kernel's work."""


class Uncapturable(Exception):
    """No CUDA graph can be made of a call; the message is the reason."""


@dataclass(frozen=True)
class Replay:
    """A captured CUDA graph: `run` replays it, `close` frees it and the memory that it holds."""

    run: Callable[[], object]
    close: Callable[[], object]


class CudaClock:
    """One CUDA device.

    Args:
        device: a CUDA device.

    Attributes:
        cache_bytes: size of its second-level cache.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._properties = torch.cuda.get_device_properties(device)
        self.cache_bytes = int(getattr(self._properties, "L2_cache_size", 0)) or USUAL_CACHE_BYTES
        self._zeros: Tensor | None = None

    @property
    def uuid(self) -> str:
        """The device's name in every process, however it numbers the devices that it sees; "" where torch has none."""
        return str(getattr(self._properties, "uuid", ""))

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Makes the device the current one inside."""
        with torch.cuda.device(self.device):
            yield

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def allocated(self) -> int:
        """Bytes of all tensors on the device."""
        return torch.cuda.memory_allocated(self.device)

    def flush(self) -> None:
        """Evicts all from the second-level cache, without waiting: the device is busy for tens of microseconds."""
        if self._zeros is None:
            size = FLUSHED_CACHES * self.cache_bytes
            self._zeros = torch.empty(size, dtype=torch.uint8, device=self.device)
        self._zeros.zero_()

    def warm_up(self, call: Callable[[], object]) -> None:
        """Repeats a call until the device has been busy for a while, unless it was measured a moment ago."""
        start = time.perf_counter()
        if start - _measured.get(str(self.device), -COLD_AFTER_SECONDS) >= COLD_AFTER_SECONDS:
            while time.perf_counter() - start < WARM_SECONDS:
                call()
                self.synchronize()
        _measured[str(self.device)] = time.perf_counter()

    def seconds(self, run: Callable[[], object], *, behind: Callable[[], object], waits: bool) -> float:
        """Time on the device from the start of `run` to its end, by events.

        Args:
            run: launches work.
            behind: launches work that comes before and is not timed.
            waits: the host waits for `behind` first, so that `run` includes what the host needs for its launches.
                Otherwise the host launches `run` while the device is still busy with `behind`.
        """
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        behind()
        if waits:
            self.synchronize()
        start.record()
        run()
        end.record()
        end.synchronize()
        _measured[str(self.device)] = time.perf_counter()
        return float(start.elapsed_time(end)) / 1e3

    def host_seconds(self, call: Callable[[], object]) -> float:
        """Time that the host takes to launch one call: many in a row, without waiting for the device."""
        samples = []
        for _ in range(HOST_BATCHES):
            self.synchronize()
            start = time.perf_counter()
            for _ in range(HOST_CALLS):
                call()
            samples.append((time.perf_counter() - start) / HOST_CALLS)
        self.synchronize()
        return statistics.median(samples)

    def capture(self, run: Callable[[], object]) -> Replay:
        """A CUDA graph of what `run` launches.

        The rules of https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs: `run` has run on the side stream
        before, where libraries allocate their workspaces and kernels are compiled and tuned, and it waits for nothing.
        The latter is tried first, since a capture that fails leaves torch's allocator as if a capture were under
        way, in versions without https://github.com/pytorch/pytorch/pull/180395.

        Args:
            run: launches work and returns the last output, if that is a tensor; then the graph is checked to write it.

        Raises:
            Uncapturable: with the reason.
            PoisonedContext: the failed capture has left the process without a working device.
        """
        with self.current():
            side, main = _side_stream(self.device), torch.cuda.current_stream()
            side.wait_stream(main)
            with torch.cuda.stream(side):
                run()
                self.synchronize()
                try:
                    with _waiting_refused():
                        expected = run()
                except RuntimeError as problem:
                    if is_out_of_memory(problem) or "synchroniz" not in str(problem):
                        raise
                    raise Uncapturable(f"it waits for the device: {described(problem)}") from problem
            main.wait_stream(side)
            self.synchronize()
            graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
            try:
                with (  # the outer one restores the stream, which `graph` forgets where ending a capture fails
                    torch.cuda.stream(main),
                    torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"),
                ):
                    output = run()
            except Exception as problem:
                _repair(self.device, pool)
                raise _usable(self, problem) from problem
            reason = _replay_fault(graph, output, expected)
            self.synchronize()
        if reason:
            graph.reset()
            raise Uncapturable(reason)
        return Replay(graph.replay, graph.reset)


_measured: dict[str, float] = {}
"""When a device was last timed in this process."""


@functools.lru_cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One per device: cuBLAS keeps a workspace for every stream that it has seen."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _waiting_refused() -> Iterator[None]:
    """Operators that wait for the device raise inside."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*ynchronization debug mode")  # that it does not see every wait
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _repair(device: torch.device, pool: tuple[int, int]) -> None:
    """Tells torch's allocator that the failed capture is over, as newer versions do by themselves."""
    end = getattr(torch._C, "_cuda_endAllocateToPool", None)
    if end is not None:
        with contextlib.suppress(RuntimeError):  # torch has done it
            end(torch.cuda.current_device() if device.index is None else device.index, pool)


def _usable(clock: CudaClock, problem: Exception) -> Exception:
    """What a failed capture is: `Uncapturable` if the device still works, else `PoisonedContext`."""
    first: BaseException = problem  # leaving the capture raises again, that it is invalid
    while first.__context__ is not None:
        first = first.__context__
    reason = described(first if isinstance(first, Exception) else problem)
    try:
        clock.synchronize()
        torch.cuda.empty_cache()
        torch.zeros(1, device=clock.device).cpu()
    except RuntimeError:
        return PoisonedContext(f"while a CUDA graph was captured: {reason}")
    return Uncapturable(f"while a CUDA graph was captured: {reason}")


def _replay_fault(graph: torch.cuda.CUDAGraph, output: object, expected: object) -> str:
    """Why a replay does not do what was captured, such as a kernel launched on another stream; "" if it does."""
    if not isinstance(output, Tensor) or not isinstance(expected, Tensor) or not output.is_floating_point():
        graph.replay()
        return ""
    output.fill_(float("nan"))
    graph.replay()
    scale = float(expected.double().norm())
    gap = float((output.double() - expected.double()).norm())
    if gap <= LARGEST_REPLAY_GAP * scale or gap == 0:
        return ""
    return "a replay does not write its output: the kernel does not run on torch's current stream"
