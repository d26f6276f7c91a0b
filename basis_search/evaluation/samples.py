"""What is timed, and samples of its time on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

SAMPLE_SECONDS = 2e-4
"""Of the calls of one sample together."""
LONG_CALL_SECONDS = 5e-3
"""A first call that takes so long is warm-up enough; shorter ones are followed by a second."""

Call = Callable[[], object]
Counter = Callable[[], int]


@dataclass(frozen=True)
class KernelCall:
    """One call of a kernel.

    Attributes:
        run: makes the call.
        again: makes the same call with weights at another address.
        x: the input.
    """

    run: Callable[[], Tensor]
    again: Callable[[], Callable[[], Tensor]]
    x: Tensor

    def __call__(self) -> Tensor:
        return self.run()


@dataclass(frozen=True)
class Sample:
    """Seconds per call; `graph` is infinite without a graph."""

    eager: float
    graph: float = math.inf


class HostSampler:
    """Times a function on the CPU.

    Args:
        function: makes one call.
        timer: returns seconds.
    """

    def __init__(self, function: Call, timer: Callable[[], float]):
        self._function, self._timer = function.run if isinstance(function, KernelCall) else function, timer
        if self._seconds_per_call(1) < LONG_CALL_SECONDS:
            self._function()
        once = self._seconds_per_call(1)
        self._calls = max(1, min(1000, round(SAMPLE_SECONDS / max(once, 1e-7))))

    circumstances: Mapping[str, Any] = {}

    def details(self, counter: Counter | None) -> dict[str, Any]:
        return {}

    def sample(self) -> Sample:
        return Sample(self._seconds_per_call(self._calls))

    def close(self) -> None: ...

    def _seconds_per_call(self, calls: int) -> float:
        function, start = self._function, self._timer()
        for _ in range(calls):
            function()
        return (self._timer() - start) / calls
