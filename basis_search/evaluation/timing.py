"""Timing: median latencies and paired ratios, ratio = median over rounds of t_candidate / t_baseline."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from basis_search.errors import BadInput, near_miss
from basis_search.evaluation import cuda_clock
from basis_search.evaluation.cuda_samples import CudaSampler
from basis_search.evaluation.energy import energy_counter
from basis_search.evaluation.samples import HostSampler, KernelCall, Sample

CLOCKS = (AUTO, EAGER, GRAPH) = ("auto", "eager", "graph")
"""What a search minimises: the latency of eager calls, or of calls replayed from a CUDA graph; see `clock_for`."""
DROP_RATIOS = {1: 4.0, 3: 2.0}
"""Rounds, and the ratio to the fastest rival above which a rival is timed no further after them."""


@dataclass(frozen=True)
class Timing:
    """Timings of one function.

    Attributes:
        seconds: median seconds per call.
        spread: interquartile range over median, of the seconds.
        ratio: median over rounds of seconds / the baseline's seconds in the same round.
        ratio_spread: interquartile range over median, of those ratios.
        joules: energy per call where the device counts it, else None.
        graph: of the same calls replayed from a CUDA graph, where there is one.
        uncaptured: why there is none, on CUDA.
        host_seconds: that the host takes to launch an eager call, on CUDA.
        copies: sets of weights that the timed calls used in turn.
    """

    seconds: float
    spread: float
    ratio: float
    ratio_spread: float
    joules: float | None = None
    graph: Timing | None = None
    uncaptured: str = ""
    host_seconds: float | None = None
    copies: int = 1


@dataclass(frozen=True)
class Device:
    """The device of a measurement; latencies of different devices are never compared."""

    name: str
    cores: int
    instructions: str
    threads: int
    torch: str

    @property
    def is_gpu(self) -> bool:
        """By its instructions, such as "sm_90"."""
        return self.instructions.startswith("sm_")


@lru_cache
def _processor() -> tuple[str, str]:
    """Model name and the vector instruction sets that matter here."""
    model, flags = platform.processor() or platform.machine(), set[str]()
    with contextlib.suppress(OSError):  # not Linux: the platform module's answer is used
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags = set(value.split())
                break
    known = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "sve")
    return model, " ".join(name for name in known if name in flags)


def fingerprint(device: torch.device, threads: int) -> Device:
    """The device that a measurement on `device` with `threads` CPU threads belongs to.

    Raises:
        BadInput: the device does not exist, or no longer.
    """
    if device.type == "cuda":
        try:
            properties = torch.cuda.get_device_properties(device)
        except (AssertionError, RuntimeError) as problem:  # torch without CUDA, no driver, no such index
            reason = str(problem).split("\n", 1)[0].rstrip(".")
            raise BadInput(
                f"the device {str(device)!r} that a layer runs on is not there ({reason}); bring it back and give the "
                "same command, or capture the layers from a model on another device"
            ) from problem
        return Device(
            properties.name,
            properties.multi_processor_count,
            f"sm_{properties.major}{properties.minor}",
            0,
            str(torch.__version__),
        )
    model, instructions = _processor()
    return Device(model, len(_affinity()), instructions, threads, str(torch.__version__))


def _affinity() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Sets torch's CPU threads to `count` inside, and restores them afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def clock_for(device: torch.device, clock: str) -> str:
    """ "eager" or "graph": "auto" is "graph" on CUDA, as serving engines replay graphs, and "eager" elsewhere.

    Raises:
        BadInput: an unknown clock, or "graph" on a device without CUDA graphs.
    """
    if clock not in CLOCKS:
        raise BadInput(f"the clock is {clock!r}{near_miss(str(clock), CLOCKS)}")
    if clock == GRAPH and device.type != "cuda":
        raise BadInput(
            f"the clock 'graph' replays CUDA graphs, but the layer runs on {device.type}; use clock='auto' or 'eager'"
        )
    if clock == AUTO:
        return GRAPH if device.type == "cuda" else EAGER
    return clock


device_wait_listeners: list[Callable[[bool], None]] = []
"""Called with True when this process begins to wait for a device that another one uses, with False when it has it."""


@contextlib.contextmanager
def exclusive_device(device: torch.device) -> Iterator[None]:
    """Excludes other processes of this machine from measuring on `device` inside, by an advisory lock file."""
    path = Path(tempfile.gettempdir()) / f"basis_search-{_physical(device)}.lock"
    try:  # users share the file; only the one who made it may open it with O_CREAT
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            for listener in device_wait_listeners:
                listener(True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            for listener in device_wait_listeners:
                listener(False)
        yield
    finally:
        os.close(descriptor)


def _physical(device: torch.device) -> str:
    """One name per device, however a process numbers those that it sees."""
    if device.type != "cuda":
        return device.type
    index = torch.cuda.current_device() if device.index is None else device.index
    return f"cuda-{getattr(torch.cuda.get_device_properties(index), 'uuid', index)}"


@lru_cache
def reference_work(device: torch.device) -> KernelCall:
    """A product of two fixed 256 x 256 matrices, timed with every candidate to show the device's present speed."""
    a = torch.linspace(-1, 1, 256 * 256, device=device).reshape(256, 256)
    b = a.T.contiguous()

    def product(b: Tensor) -> Callable[[], Tensor]:
        return lambda: a @ b

    return KernelCall(product(b), lambda: product(b.clone()), a)


_fastest: dict[tuple[str, int], float] = {}


def drift(device: torch.device, threads: int, seconds: float) -> float:
    """Ratio of the reference work's time to its least in this process; above 1 by heat or by other load."""
    key = (str(device), threads)
    _fastest[key] = min(seconds, _fastest.get(key, seconds))
    return seconds / _fastest[key]


def measure(
    functions: Mapping[str, Callable[[], object]],
    baseline: str,
    *,
    device: torch.device | str = "cpu",
    threads: int = 1,
    rounds: int = 11,
    seconds: float = 0.05,
    timer: Callable[[], float] = time.perf_counter,
    rivals: Collection[str] = (),
) -> dict[str, Timing]:
    """Times each function in turn, round after round, so that drift of the machine affects all alike.

    Args:
        functions: by name, each makes one call; the baseline is one of them. On CUDA, a `KernelCall` is timed by both
            clocks, with its weights and input where a model finds them, other functions eagerly and as they are.
        baseline: name of the function that the ratios are relative to.
        device: where the functions run.
        threads: torch's CPU threads, and those of our kernels, which ask torch.
        rounds: at least this many.
        seconds: goes on for at least this long per function.
        timer: returns seconds, on the CPU; time.process_time, with one thread, leaves out the time that other processes
            take.
        rivals: functions of which only the fastest matters; slow ones get few samples, and the energy and the host's
            time of the fastest alone are measured.
    """
    device = torch.device(device)
    samples: dict[str, list[Sample]] = {name: [] for name in functions}
    with contextlib.ExitStack() as stack:
        for context in (torch_threads(threads), exclusive_device(device)):
            stack.enter_context(context)
        clock = cuda_clock.CudaClock(device) if device.type == "cuda" else None
        if clock is not None:
            stack.enter_context(clock.current())
            clock.warm_up(functions[baseline])
        samplers: dict[str, CudaSampler | HostSampler] = {}
        for name, function in functions.items():
            samplers[name] = HostSampler(function, timer) if clock is None else CudaSampler(clock, function)
            stack.callback(samplers[name].close)
        if clock is not None:
            for sampler in samplers.values():  # capturing graphs has emptied the allocator's cache
                sampler.sample()
        start, running = time.perf_counter(), dict(samplers)
        while len(samples[baseline]) < rounds or time.perf_counter() - start < seconds * len(running):
            for name, sampler in running.items():
                samples[name].append(sampler.sample())
            if (by := DROP_RATIOS.get(len(samples[baseline]))) is not None:
                for name in _behind({name: samples[name] for name in rivals if name in running}, by):
                    del running[name]
        timings = {name: _timing(values, samples[baseline]) for name, values in samples.items()}
        if clock is not None:
            counter, finalists = energy_counter(clock.uuid), _finalists(timings, rivals)
            for name, sampler in samplers.items():
                details = sampler.details(counter) if name in finalists else sampler.circumstances
                timings[name] = dataclasses.replace(timings[name], **details)
    return timings


def _behind(samples: Mapping[str, Sequence[Sample]], by: float) -> list[str]:
    """Functions that take more than `by` times as long as the fastest, by either clock."""
    eager = {name: statistics.median(sample.eager for sample in values) for name, values in samples.items()}
    graph = {name: statistics.median(sample.graph for sample in values) for name, values in samples.items()}
    return [
        name
        for name in samples
        if eager[name] > by * min(eager.values())
        and (graph[name] > by * min(graph.values()) or graph[name] == math.inf)
    ]


def _timing(samples: Sequence[Sample], base: Sequence[Sample]) -> Timing:
    def of(values: list[float], others: list[float]) -> Timing:
        ratios = [value / other for value, other in zip(values, others, strict=False)]
        return Timing(*_median_and_spread(values), *_median_and_spread(ratios))

    eager = of([s.eager for s in samples], [s.eager for s in base])
    if math.inf in (samples[0].graph, base[0].graph):
        return eager
    return dataclasses.replace(eager, graph=of([s.graph for s in samples], [s.graph for s in base]))


def _finalists(timings: Mapping[str, Timing], rivals: Collection[str]) -> set[str]:
    """All but the rivals, and the fastest rival by each clock."""
    racing = [name for name in timings if name in rivals]
    by_graph = {name: g.ratio for name in racing if (g := timings[name].graph) is not None}
    fastest = {min(racing, key=lambda name: timings[name].ratio)} if racing else set()
    return (set(timings) - set(rivals)) | fastest | ({min(by_graph, key=by_graph.__getitem__)} if by_graph else set())


def _median_and_spread(values: list[float]) -> tuple[float, float]:
    median = statistics.median(values)
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (median, median, median)
    return median, (high - low) / median
