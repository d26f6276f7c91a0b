"""State that a run's workers share: one small JSON document, changed by one process at a time.

`{"workers": {id: {"number", "place", "pid", "beats", ...}}, "claims": {key: {"worker", "deaths", ...}}}`
"""

from __future__ import annotations

import copy
import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from basis_search.errors import BadInput
from basis_search.files import read_json, write_json

State = dict[str, Any]


class SharedState(Protocol):
    """Storage of the state; `edit` returns what its function returns."""

    def edit(self, change: Callable[[State], Any]) -> Any: ...


class FileState:
    """State in a file of the run folder, with a lock file next to it."""

    def __init__(self, path: Path):
        self.path = path

    def edit(self, change: Callable[[State], Any]) -> Any:
        """change(state); its changes are on disk on return.

        Raises:
            BadInput: the file cannot be written, or was edited by hand.
        """
        try:
            with self.path.with_name(f".{self.path.name}.lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                state = read_json(self.path) if self.path.exists() else empty()
                check(state, str(self.path))
                before = copy.deepcopy(state)
                result = change(state)
                if state != before:
                    write_json(self.path, state)
                return result
        except OSError as problem:
            raise BadInput(
                f"{self.path} cannot be written: {problem.strerror}; free space or name another run folder"
            ) from problem


def check(state: Any, where: str) -> None:
    """Raises BadInput unless it is a state."""
    if not isinstance(state, dict) or not all(isinstance(state.get(k), dict) for k in ("workers", "claims")):
        raise BadInput(f"{where} was not written by basis_search; delete it while no worker runs")


def empty() -> State:
    """The state before any worker has joined."""
    return {"workers": {}, "claims": {}}
