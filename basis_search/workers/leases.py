"""Leases: which worker evaluates which candidate, so that no two evaluate the same and a dead worker's are taken over.

Each worker counts its own heartbeats up in the run's shared state. One whose count stays the same while the observer's
own goes up by more than MAX_MISSED_HEARTBEATS is dead: no clock is read, so that setting one back harms nothing, and a
pause of all workers (a machine asleep) is no death. On one machine the process table shows at once who is dead.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from basis_search.errors import BadInput
from basis_search.workers import liveness
from basis_search.workers.shared_state import SharedState, State, empty

MAX_DEATHS = 2
"""A candidate over whose evaluation so many workers died is set aside."""


@dataclass(frozen=True)
class Lease:
    """A candidate that a worker evaluates.

    Attributes:
        layer_hash, family, spec: what is evaluated, the spec as JSON.
        trial: optuna's number of it, in the study of the layer and family.
        deaths: workers that died over it.
    """

    layer_hash: str
    family: str
    spec: dict[str, Any]
    trial: int | None
    deaths: int = 0


class Leases:
    """One worker's view of all leases of its run.

    Args:
        shared: the state of the run's workers; None for a worker that is alone.

    Attributes:
        worker_id: this worker's, in the shared state.
    """

    def __init__(self, shared: SharedState | None = None):
        self.worker_id = uuid.uuid4().hex[:12]
        self._shared = shared
        self._entry: dict[str, Any] = {"beats": 0}
        self._is_dead = liveness.DeathCheck()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._problem: BadInput | None = None

    @property
    def shared(self) -> bool:
        """Whether workers of other processes see this one."""
        return self._shared is not None

    @contextlib.contextmanager
    def joined(self, number: int = 0, about: dict[str, str] | None = None) -> Iterator[list[int]]:
        """In the shared state as worker `number` inside, unless it is there already; yields the others' numbers.

        Args:
            number: this worker's, as the user gave it.
            about: facts on which all workers of the run must agree, such as the digest of its layers.

        Raises:
            BadInput: the run was begun with other facts.
        """
        if self._shared is None or self._thread is not None:
            yield []
            return
        others = self._join(self._shared, number, about)
        try:
            yield others
        finally:
            self._leave(self._shared)

    def _join(self, shared: SharedState, number: int, about: dict[str, str] | None) -> list[int]:
        pid = os.getpid()
        self._entry = {
            "number": number,
            "place": liveness.place(),
            "pid": pid,
            "began": liveness.start_time(pid),
            "beats": 0,
            "busy": True,
        }

        def enter(state: State) -> list[int]:
            for key, value in (about or {}).items():
                if (begun := state.setdefault("about", {}).setdefault(key, value)) != value:
                    raise BadInput(
                        f"this run was begun on other {key} ({begun}, not {value}); give the same, or name another run "
                        "folder with run=DIR"
                    )
            state["workers"][self.worker_id] = self._entry
            self._remove_dead(state)
            return [w["number"] for name, w in state["workers"].items() if name != self.worker_id]

        others: list[int] = shared.edit(enter)
        self._stop.clear()
        self._thread = threading.Thread(target=self._send_heartbeats, name="heartbeat", daemon=True)
        self._thread.start()
        return others

    def _leave(self, shared: SharedState) -> None:
        assert self._thread is not None
        self._stop.set()
        self._thread.join()
        self._thread = None

        def leave(state: State) -> None:
            state["workers"].pop(self.worker_id, None)
            state["claims"] = {k: c for k, c in state["claims"].items() if c["worker"] != self.worker_id}

        shared.edit(leave)

    def acquire(self, key: str, lease: Lease, families: Collection[str]) -> int | None:
        """Leases a candidate; the number of leases that others hold on the layer and these families at that moment.

        None where another worker, dead or alive, holds a lease on it. One step: of two workers that lease the last
        candidate wanted, the second counts the first.
        """
        if self._shared is None:
            return 0

        def put(state: State) -> int | None:
            there = state["claims"].setdefault(key, {"worker": self.worker_id, **dataclasses.asdict(lease)})
            if there["worker"] != self.worker_id:
                return None
            others = [c for c in state["claims"].values() if c["worker"] != self.worker_id]
            return len([c for c in others if c["layer_hash"] == lease.layer_hash and c["family"] in families])

        held: int | None = self._edit(put)
        return held

    def release(self, key: str) -> None:
        """Ends a lease: the candidate is evaluated, or will not be."""

        def remove(state: State) -> None:
            if state["claims"].get(key, {}).get("worker") == self.worker_id:
                del state["claims"][key]

        if self._shared is not None:
            self._edit(remove)

    def take_over(self, layer_hash: str, family: str) -> tuple[str, Lease] | None:
        """A dead worker's lease on that layer and family, now this worker's, with one death more; None if none."""
        if self._shared is None:
            return None

        def pick(state: State) -> tuple[str, Lease] | None:
            self._remove_dead(state)
            for key, data in state["claims"].items():
                lease = _lease(data)
                orphaned = data["worker"] not in state["workers"]
                if orphaned and (lease.layer_hash, lease.family) == (layer_hash, family):
                    data.update(worker=self.worker_id, deaths=lease.deaths + 1)
                    return key, dataclasses.replace(lease, deaths=lease.deaths + 1)
            return None

        found: tuple[str, Lease] | None = self._edit(pick)
        return found

    def held_by_others(self, layer_hash: str, family: str) -> list[Lease]:
        """Leases of other workers, dead or alive, on that layer and family."""
        return [
            lease
            for data in self.state()["claims"].values()
            if data["worker"] != self.worker_id
            and ((lease := _lease(data)).layer_hash, lease.family) == (layer_hash, family)
        ]

    def state(self) -> State:
        """A copy of the shared state."""
        state: State = empty() if self._shared is None else self._edit(copy.deepcopy)
        return state

    def living_workers(self) -> set[str]:
        """Ids of all workers that are alive, this one included; the dead are removed from the shared state."""

        def alive(state: State) -> set[str]:
            self._remove_dead(state)
            return set(state["workers"])

        return {self.worker_id} if self._shared is None else {*self._edit(alive), self.worker_id}

    def is_only_worker(self) -> bool:
        """Whether no other worker is alive; False where there is no shared state to see it in."""
        return self._shared is not None and self.living_workers() == {self.worker_id}

    def finish_as_last(self) -> bool:
        """Marks this worker's search as finished; whether all others have finished or died before it.

        Where only heartbeats show whether another one lives, this takes until its next one, or until it counts as
        dead.
        """
        if self._shared is None:
            return True

        def mark(state: State) -> State:
            if self.worker_id in state["workers"]:
                state["workers"][self.worker_id]["busy"] = False
            self._remove_dead(state)
            return copy.deepcopy(state)

        def busy(state: State) -> dict[str, Any]:
            return {name: w for name, w in state["workers"].items() if name != self.worker_id and w["busy"]}

        self._entry["busy"] = False
        first, others = None, busy(self._edit(mark))
        while others:
            first = first or others
            if any(w["place"] == liveness.place() or w["beats"] != first[name]["beats"] for name, w in others.items()):
                return False
            time.sleep(0.2)
            others = {name: w for name, w in busy(self._edit(mark)).items() if name in first}
        return True

    def _edit(self, change: Callable[[State], Any]) -> Any:
        if self._problem is not None:
            raise self._problem
        assert self._shared is not None
        return self._shared.edit(change)

    def _send_heartbeats(self) -> None:
        assert self._shared is not None

        def count_up(state: State) -> None:
            self._entry["beats"] += 1
            state["workers"][self.worker_id] = dict(self._entry)  # again, if a pause made this worker look dead

        try:
            while not self._stop.wait(liveness.HEARTBEAT_SECONDS):
                self._shared.edit(count_up)
        except BadInput as problem:  # the worker itself raises it when it next reads the state
            self._problem = problem

    def _remove_dead(self, state: State) -> None:
        for name, worker in list(state["workers"].items()):
            if name != self.worker_id and self._is_dead(name, worker, self._entry["beats"]):
                del state["workers"][name]


def _lease(data: dict[str, Any]) -> Lease:
    return Lease(**{f.name: data[f.name] for f in dataclasses.fields(Lease)})
