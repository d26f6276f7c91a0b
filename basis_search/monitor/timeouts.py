"""Calls that may hang, made in a thread of their own: whoever waits for one waits no longer than said."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

Answer = queue.SimpleQueue[BaseException | None]


class Line:
    """One thread, one call after the other. A call that hangs is left to hang, and the thread does not hold up exit."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Answer]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="calls that may hang", daemon=True)

    def call(self, what: Callable[[], Any], seconds: float) -> None:
        """Waits for the call. Raises what it raises, or TimeoutError after `seconds`."""
        self.wait(self.begin(what), seconds)

    def begin(self, what: Callable[[], Any]) -> Answer:
        """Makes the call after those before it, and does not wait; whoever wants its answer asks `wait`."""
        if not self._thread.is_alive():
            self._thread.start()
        answer: Answer = queue.SimpleQueue()
        self._calls.put((what, answer))
        return answer

    def wait(self, answer: Answer, seconds: float) -> None:
        """Waits for a call that was begun. Raises what it raises, or TimeoutError after `seconds`."""
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
