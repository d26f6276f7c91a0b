"""Run calls in a background thread, with a timeout."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

Answer = queue.SimpleQueue[BaseException | None]


class CallThread:
    """Makes calls one after another in one daemon thread; a call that hangs blocks later calls, but not the exit."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Answer]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="calls with a timeout", daemon=True)

    def call(self, what: Callable[[], Any], seconds: float) -> None:
        """Makes the call and waits for it. Raises what it raises, or TimeoutError after `seconds`."""
        self.wait(self.begin(what), seconds)

    def begin(self, what: Callable[[], Any]) -> Answer:
        """Queues the call and returns at once; pass the answer to `wait`."""
        if not self._thread.is_alive():
            self._thread.start()
        answer: Answer = queue.SimpleQueue()
        self._calls.put((what, answer))
        return answer

    def wait(self, answer: Answer, seconds: float) -> None:
        """Waits for a call that was queued. Raises what it raises, or TimeoutError after `seconds`."""
        try:
            problem = answer.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError(f"no answer within {seconds:g} s") from None
        if problem is not None:
            raise problem

    def _work(self) -> None:
        while True:
            what, answer = self._calls.get()
            try:
                what()
                answer.put(None)
            except BaseException as problem:
                answer.put(problem)
