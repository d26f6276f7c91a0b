"""The clock on CUDA, on a test double: alternation, rotated weights, graphs, fallback, memory, energy, the lock.

Kernels advance a made-up time, or run on the pretended device. Neither shows that CUDA accepts the calls.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from pretend_cuda import pretend_cuda

import basis_search as bs
from basis_search.errors import BadInput
from basis_search.evaluation import correctness, cuda_clock, timing
from basis_search.evaluation import evaluate as evaluating
from basis_search.evaluation.cuda_clock import CudaClock, Replay, Uncapturable
from basis_search.evaluation.cuda_samples import COPIED_CACHES, CudaSampler
from basis_search.evaluation.device_errors import PoisonedContext
from basis_search.evaluation.energy import joules_per_call
from basis_search.evaluation.evaluate import evaluate
from basis_search.evaluation.samples import KernelCall

SPEC = bs.lowrank.Spec(rank=4)
HOST, GPU = 5e-5, 1e-5
"""Made-up seconds of the host and of the GPU for a call of a kernel that takes 1."""


class FakeClock:
    """A `CudaClock` of made-up time, which notes what happens: eager calls take the host's time, replays the GPU's."""

    device, uuid, cache_bytes = torch.device("cpu"), "made-up", 1000

    def __init__(self, device: torch.device | None = None):
        self.events: list[str] = []
        self.now, self.used, self.replaying = 0.0, 0, False

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        yield

    def synchronize(self) -> None: ...

    def allocated(self) -> int:
        return self.used

    def flush(self) -> None:
        self.events.append("flush")

    def warm_up(self, call: Callable[[], object]) -> None:
        self.events.append("warm up")

    def seconds(self, run: Callable[[], object], *, behind: Callable[[], object], waits: bool) -> float:
        behind()
        self.replaying = not waits
        start = self.now
        run()
        self.replaying = False
        return self.now - start

    def host_seconds(self, call: Callable[[], object]) -> float:
        return HOST

    def capture(self, run: Callable[[], object]) -> Replay:
        self.events.append("capture")
        run()
        return Replay(run, lambda: self.events.append("close"))

    def samples(self) -> list[str]:
        """The kernels sampled after all graphs were captured, each sample once."""
        begun = len(self.events) - self.events[::-1].index("capture")
        pairs = itertools.pairwise(self.events[begun:])
        return [after.split()[0] for event, after in pairs if event == "flush"]

    def kernel(self, name: str, cost: float, most_copies: float = math.inf) -> KernelCall:
        """A kernel that takes `cost` times as long; memory holds so many copies of its weights, of 100 bytes."""
        made = 0

        def at(address: int) -> Callable[[], torch.Tensor]:
            def run() -> torch.Tensor:
                self.events.append(f"{name} {address}")
                self.now += cost * (GPU if self.replaying else HOST)
                return x

            return run

        def again() -> Callable[[], torch.Tensor]:
            nonlocal made
            if made >= most_copies:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            made += 1
            self.used += 100
            return at(made)

        x = torch.zeros(2, 2)
        return KernelCall(at(0), again, x)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    clock = FakeClock()
    monkeypatch.setattr(cuda_clock, "CudaClock", lambda device: clock)
    return clock


def measured(clock: FakeClock, functions: dict[str, Any], **options: Any) -> dict[str, timing.Timing]:
    with pretend_cuda():
        return timing.measure(functions, "base", device="cuda:0", rounds=3, seconds=0.0, **options)


def test_eager_calls_and_replays_are_sampled_in_turn_and_both_ratios_are_paired(clock: FakeClock) -> None:
    timings = measured(clock, {"base": clock.kernel("base", 2), "one": clock.kernel("one", 1)})
    for name, cost in (("base", 2), ("one", 1)):
        assert timings[name].seconds == pytest.approx(cost * HOST)
        assert timings[name].graph is not None
        assert timings[name].graph.seconds == pytest.approx(cost * GPU)
        assert timings[name].graph.ratio == pytest.approx(cost / 2)
        assert timings[name].ratio == pytest.approx(cost / 2)
        assert timings[name].host_seconds == HOST
    assert clock.samples() == ["base", "base", "one", "one"] * 4  # once to warm up
    assert clock.events.count("close") == 2


def test_consecutive_calls_use_weights_at_different_addresses(clock: FakeClock) -> None:
    sampler = CudaSampler(clock, clock.kernel("k", 1))  # type: ignore[arg-type]
    assert sampler.copies == COPIED_CACHES * clock.cache_bytes // 100
    clock.events.clear()
    sampler.sample()
    calls = [event for event in clock.events if event != "flush"]
    assert all(a != b for a, b in itertools.pairwise(calls))
    assert set(calls) == {f"k {address}" for address in range(sampler.copies)}
    assert clock.events[0] == "flush"


def test_where_memory_ends_fewer_copies_are_used_and_counted(clock: FakeClock) -> None:
    timings = measured(clock, {"base": clock.kernel("base", 1), "big": clock.kernel("big", 1, most_copies=5)})
    assert timings["big"].copies == 3  # half of 6
    assert timings["base"].copies == 30
    assert timings["big"].graph is not None


def test_a_slow_rival_is_dropped_only_if_it_is_slow_by_both_clocks(clock: FakeClock) -> None:
    slow_graph = clock.kernel("graph", 1)

    def run() -> torch.Tensor:
        clock.events.append("graph 0")
        clock.now += 9 * GPU if clock.replaying else HOST
        return slow_graph.x

    functions = {
        "base": clock.kernel("base", 1),
        "fast": clock.kernel("fast", 1),
        "slow": clock.kernel("slow", 9),
        "graph": replace(slow_graph, run=run, again=lambda: run),
    }
    timings = measured(clock, functions, rivals=("fast", "slow", "graph"))
    counts = Counter(clock.samples())
    assert counts == {"base": 8, "fast": 8, "graph": 8, "slow": 4}
    assert timings["slow"].host_seconds is None
    assert timings["fast"].host_seconds == HOST


def a_layer(device: str = "cuda:0") -> bs.Layer:
    torch.manual_seed(0)
    return bs.Layer.from_linear(torch.nn.Linear(32, 32), torch.randn(64, 32), "fc", batch=16).to(device)


@pytest.mark.parametrize(("family", "spec"), [("dense", bs.dense.Spec()), ("lowrank", SPEC)])
def test_an_evaluation_on_the_pretended_device_holds_both_latencies(family: str, spec: Any) -> None:
    with pretend_cuda():
        found = evaluate(a_layer(), family, spec, seconds=0.0)
        there = evaluate(a_layer("cpu"), family, spec, seconds=0.0)
    assert found.failure is None
    assert (found.timed, found.device.name) == ("graph", "Pretended GPU")
    assert found.latency_graph is not None
    assert 0 < found.latency_graph < math.inf
    assert found.objectives[2] == found.latency_graph_ratio
    assert found.host_seconds is not None
    assert found.clock["copies"] >= 2
    assert found.error == pytest.approx(there.error)
    assert there.timed == "eager"
    assert bs.Evaluation.from_json(found.to_json()) == found
    assert found.timed_by("eager").objectives[2] == found.latency_ratio


def test_a_twin_serves_by_the_clock_that_its_kernel_is_the_fastest_by(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretend_cuda():
        first = evaluate(a_layer(), "lowrank", SPEC, seconds=0.0)
        shared = evaluate(a_layer(), "lowrank", SPEC, twin=first, clock="eager")
        assert (shared.timed, shared.latency, shared.latency_graph) == ("eager", first.latency, first.latency_graph)
        other = replace(first, kernels={"torch": 1.0, "other": 0.9}, kernels_graph={"torch": 0.8, "other": 0.9})
        assert evaluating._serves(other, dict.fromkeys(other.kernels))
        assert not evaluating._serves(other.timed_by("eager"), dict.fromkeys(other.kernels))


def with_kernel(monkeypatch: pytest.MonkeyPatch, run: Callable[[Any], Any]) -> None:
    """Replaces the kernel of the low-rank family by `run(kernel)`."""
    module = bs.families.family("lowrank")
    reference, torchs = module.KERNELS[0], next(k for k in module.KERNELS if k.name == "torch")
    monkeypatch.setattr(module, "KERNELS", (reference, replace(torchs, run=run(torchs))))


def test_a_kernel_that_waits_for_the_device_is_timed_eagerly_and_the_reason_is_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def waiting(kernel: Any) -> Any:
        return lambda s, packed, x: kernel.run(s, packed, x) + 0 * x[0, 0].item()

    with_kernel(monkeypatch, waiting)
    with pretend_cuda():
        found = evaluate(a_layer(), "lowrank", SPEC, seconds=0.0, clock="graph")
        monkeypatch.setattr(cuda_clock, "_waiting_refused", contextlib.nullcontext)
        unforeseen = evaluate(a_layer(), "lowrank", SPEC, seconds=0.0, clock="graph")
    assert found.uncaptured["torch"].startswith("it waits for the device")
    assert (found.failure, found.timed, found.latency_graph, found.host_share) == (None, "eager", None, None)
    assert found.objectives[2] == found.latency_ratio
    assert "not permitted when stream is capturing" in unforeseen.uncaptured["torch"]


def test_a_graph_that_does_not_write_the_output_is_refused() -> None:
    with pretend_cuda():
        elsewhere = torch.ones(4, 4, device="cuda:0")
        with pytest.raises(Uncapturable, match="does not write its output"):
            CudaClock(torch.device("cuda:0")).capture(lambda: elsewhere)


def test_errors_of_a_kernel_are_failures_or_end_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    problem: Exception = torch.OutOfMemoryError("CUDA out of memory.")

    def raising(kernel: Any) -> Any:
        def run(*arguments: Any) -> Any:
            raise problem

        return run

    with_kernel(monkeypatch, raising)
    with pretend_cuda():
        assert "out of memory" in (evaluate(a_layer(), "lowrank", SPEC).failure or "")
        problem = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        with pytest.raises(PoisonedContext, match="illegal memory access"):
            evaluate(a_layer(), "lowrank", SPEC)


def test_the_reference_takes_fewer_rows_at_once_where_memory_ends() -> None:
    sizes = []

    def exact(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return x @ weight

    with pretend_cuda():
        x, weight = torch.randn(10, 4, device="cuda:0"), torch.randn(4, 5, device="cuda:0", dtype=torch.float64)
        signs = torch.randint(0, 2, (10, 4)) * 2 - 1
        assert torch.allclose(correctness.in_rows(exact, x), x.double() @ weight)
        assert torch.allclose(correctness.in_rows(exact, x, signs), (x * signs.to("cuda:0")).double() @ weight)
        y = (x.double() @ weight).float() * (1 + 1e-3)
        assert correctness._gap(y, x.double() @ weight) == pytest.approx(1e-3, rel=1e-3)
    assert sizes[:5] == [10, 5, 3, 3, 3]


def test_energy_is_taken_between_two_changes_of_the_counter() -> None:
    """A GPU of 500 W, a counter that moves every 0.1 s, calls of 1 ms."""
    now = 0.037

    def repeat() -> int:
        nonlocal now
        now += 10e-3
        return 10

    def counter() -> int:
        return int(now / 0.1 + 1e-9) * 50_000

    joules = joules_per_call(counter, repeat, lambda: now)
    assert joules == pytest.approx(0.5, rel=0.05)
    assert joules_per_call(lambda: 7, repeat, lambda: now) is None


def test_one_process_measures_on_a_device_at_a_time_and_devices_do_not_exclude_each_other() -> None:
    waits: list[bool] = []
    free = threading.Event()

    def waiting(begins: bool) -> None:
        waits.append(begins)
        free.set()

    timing.device_wait_listeners.append(waiting)
    try:
        with pretend_cuda():
            with timing.exclusive_device(torch.device("cuda:0")):
                with timing.exclusive_device(torch.device("cuda:1")):
                    assert waits == []
                other = threading.Thread(target=lambda: timing.exclusive_device(torch.device("cuda:0")).__enter__())
                other.start()
                assert free.wait(20)
                assert waits == [True]
            other.join(20)
            assert waits == [True, False]
    finally:
        timing.device_wait_listeners.remove(waiting)


def test_a_clock_that_is_no_text_is_refused_in_a_sentence() -> None:
    with pytest.raises(BadInput, match="the clock is None"):
        evaluate(a_layer("cpu"), "lowrank", SPEC, clock=None)  # type: ignore[arg-type]
