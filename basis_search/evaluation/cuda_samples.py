"""Samples of a kernel's time on a CUDA device, its weights and inputs where a model finds them.

Weights come from memory: a model has run all its other layers since it last used them, so that they have left the
second-level cache if the model is larger than it. A sample therefore begins with an empty cache, as those of
triton.testing.do_bench and of NVIDIA's nvbench do, and its calls use copies of the weights in turn. The input is in the
cache as far as it fits: the previous layer has just written it. It is written again after the cache was emptied, which
do_bench does not do; its calls share one.
"""

from __future__ import annotations

import math
from typing import Any

from basis_search.evaluation.cuda_clock import CudaClock, Replay, Uncapturable
from basis_search.evaluation.device_errors import is_out_of_memory, release_memory
from basis_search.evaluation.energy import joules_per_call
from basis_search.evaluation.samples import Call, Counter, KernelCall, Sample

SAMPLE_SECONDS = 1e-3
"""Of the calls of one sample together; events resolve half a microsecond, and a replay begins within a few."""
MAX_CALLS, ESTIMATED_CALLS = 64, 3
COPIED_CACHES = 3
"""Copies of the weights together hold so many times the second-level cache, or there is one for each call."""
FLUSHES_BEHIND_ESTIMATE = 10
"""They take the device about a millisecond, in which the host launches the calls that are estimated."""


class CudaSampler:
    """Times one function on a CUDA device, eagerly and replayed from a CUDA graph.

    A function that is no `KernelCall` is timed as it is: eagerly, and with what it finds in the cache.

    Attributes:
        copies: the number of sets of weights that the calls use in turn; fewer than wanted where memory ran out.
        uncaptured: why there is no graph.
    """

    def __init__(self, clock: CudaClock, function: Call):
        self._clock, self._function = clock, function
        self._replay: Replay | None = None
        self._input = function.x.clone() if isinstance(function, KernelCall) else None
        for _ in range(2):  # compiles, and warms up
            function()
        once = clock.seconds(self._batch([function] * ESTIMATED_CALLS), behind=self._settle, waits=True)
        self._eager_calls = self._calls_for(once / ESTIMATED_CALLS)
        self._calls = [function]
        if isinstance(function, KernelCall):
            busy = clock.seconds(self._batch([function] * ESTIMATED_CALLS), behind=self._occupy, waits=False)
            wanted = max(self._eager_calls, self._calls_for(busy / ESTIMATED_CALLS))
            self._calls = _rotated(clock, function, wanted)
            self._whole = [self._calls[i % len(self._calls)] for i in range(wanted)]
            for call in self._calls:
                call()
        else:
            self._whole = [function] * self._eager_calls
        self.uncaptured = self._capture()

    @property
    def copies(self) -> int:
        return len(self._calls)

    def _capture(self) -> str:
        """Makes the graph, of as many calls as a sample has; returns the reason if that fails."""
        if not isinstance(self._function, KernelCall):
            return "it is no kernel's call"
        try:
            self._replay = self._clock.capture(self._batch(self._whole))
        except Uncapturable as problem:
            return str(problem)
        return ""

    def sample(self) -> Sample:
        """One sample by each clock."""
        eager = self._whole[: self._eager_calls]
        seconds = self._clock.seconds(self._batch(eager), behind=self._settle, waits=True) / len(eager)
        if self._replay is None:
            return Sample(seconds, math.inf)
        replayed = self._clock.seconds(self._replay.run, behind=self._settle, waits=False)
        return Sample(seconds, replayed / len(self._whole))

    @property
    def circumstances(self) -> dict[str, Any]:
        """How it was timed, as fields of a `Timing`."""
        return {"copies": self.copies, "uncaptured": self.uncaptured}

    def details(self, counter: Counter | None) -> dict[str, Any]:
        """`circumstances`, the time of the host per eager call, and the energy per call where a counter is."""
        joules = None if counter is None else joules_per_call(counter, self._repeat)
        return self.circumstances | {"host_seconds": self._clock.host_seconds(self._function), "joules": joules}

    def _repeat(self) -> int:
        """Makes a sample's calls, from the graph where there is one, and waits for them; returns their number."""
        run = self._batch(self._whole) if self._replay is None else self._replay.run
        run()
        self._clock.synchronize()
        return len(self._whole)

    def close(self) -> None:
        """Frees the graph and the copies; nothing is timed afterwards."""
        if self._replay is not None:
            self._replay.close()
        self._replay, self._calls, self._whole = None, [], []

    def _settle(self) -> None:
        """The second-level cache as a model's previous layer leaves it."""
        if isinstance(self._function, KernelCall) and self._input is not None:
            self._clock.flush()
            self._function.x.copy_(self._input)

    def _occupy(self) -> None:
        for _ in range(FLUSHES_BEHIND_ESTIMATE):
            self._clock.flush()

    @staticmethod
    def _batch(calls: list[Call]) -> Call:
        def run() -> object:
            output: object = None
            for call in calls:
                output = call()
            return output

        return run

    @staticmethod
    def _calls_for(seconds: float) -> int:
        """Two or more, so that consecutive calls use different weights."""
        return max(2, min(MAX_CALLS, round(SAMPLE_SECONDS / max(seconds, 1e-9))))


def _rotated(clock: CudaClock, function: KernelCall, wanted: int) -> list[Call]:
    """The call, and the same call on copies of its weights, up to `wanted`; half of what memory allows if that ends."""
    calls: list[Call] = [function.run]
    before = clock.allocated()
    while len(calls) < wanted:
        try:
            calls.append(function.again())
        except RuntimeError as problem:
            if not is_out_of_memory(problem):
                raise
            del calls[max(1, len(calls) // 2) :]
            release_memory()
            break
        each = (clock.allocated() - before) / (len(calls) - 1)
        if each > 0:
            wanted = min(wanted, max(2, math.ceil(COPIED_CACHES * clock.cache_bytes / each)))
    return calls
