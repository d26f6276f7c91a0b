"""Who is at work on what: no candidate is evaluated by two workers, and what a dead one left is taken up again.

Each worker counts its own beats up on the run's board. One whose count stands still while the observer's own goes up by
more than GRACE_BEATS is dead: no clock is asked, so that setting one back harms nothing, and a pause of all workers (a
machine asleep) is no death. On one machine the process table says at once who is dead.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from basis_search.errors import BadInput
from basis_search.workers.shared_state import Board, State, empty

BEAT, GRACE_BEATS = 5.0, 6
"""Seconds between beats of a worker, and how many of its own another one waits for a beat of it, half a minute."""
DEATHS = 2
"""A candidate that was at hand when so many workers died is set aside."""


@dataclass(frozen=True)
class Claim:
    """A candidate that a worker has in hand.

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


class Claims:
    """One worker's view of the board; it stands there while it is `at_work`.

    Args:
        board: shared by all workers of the run; None for a worker that knows of no other.
    """

    def __init__(self, board: Board | None = None):
        self.me = uuid.uuid4().hex[:12]
        self._board = board
        self._entry: dict[str, Any] = {"beats": 0}
        self._seen: dict[str, tuple[int, int]] = {}  # worker -> its beats, and ours when they last changed
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._problem: BadInput | None = None

    @property
    def shared(self) -> bool:
        """Whether there is a board, on which workers of other processes see this one."""
        return self._board is not None

    @contextlib.contextmanager
    def at_work(self, number: int = 0, about: dict[str, str] | None = None) -> Iterator[list[int]]:
        """On the board as worker `number` inside, unless it is there already; yields the numbers of the others.

        Args:
            number: this worker's, as the user gave it.
            about: what the run is of; every worker must say the same.

        Raises:
            BadInput: the run is of something else.
        """
        if self._board is None or self._thread is not None:
            yield []
            return
        others = self._start(self._board, number, about)
        try:
            yield others
        finally:
            self._leave(self._board)

    def _start(self, board: Board, number: int, about: dict[str, str] | None) -> list[int]:
        pid = os.getpid()
        self._entry = {"number": number, "place": place(), "pid": pid, "began": _began(pid), "beats": 0, "busy": True}

        def enter(state: State) -> list[int]:
            for key, value in (about or {}).items():
                if (begun := state.setdefault("about", {}).setdefault(key, value)) != value:
                    raise BadInput(
                        f"this run was begun on other {key} ({begun}, not {value}); give the same, or name another run "
                        "folder with run=DIR"
                    )
            state["workers"][self.me] = self._entry
            self._forget_the_dead(state)
            return [w["number"] for name, w in state["workers"].items() if name != self.me]

        others: list[int] = board.edit(enter)
        self._stop.clear()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()
        return others

    def _leave(self, board: Board) -> None:
        assert self._thread is not None
        self._stop.set()
        self._thread.join()
        self._thread = None

        def leave(state: State) -> None:
            state["workers"].pop(self.me, None)
            state["claims"] = {k: c for k, c in state["claims"].items() if c["worker"] != self.me}

        board.edit(leave)

    def take(self, key: str, claim: Claim, families: Collection[str]) -> int | None:
        """How many candidates of the layer and these families others had in hand when it became ours.

        None if it did not: another worker has it, dead or alive. One step: of two workers that take the last one
        wanted, the second is told of the first.
        """
        if self._board is None:
            return 0

        def put(state: State) -> int | None:
            there = state["claims"].setdefault(key, {"worker": self.me, **dataclasses.asdict(claim)})
            if there["worker"] != self.me:
                return None
            others = [c for c in state["claims"].values() if c["worker"] != self.me]
            return len([c for c in others if c["layer_hash"] == claim.layer_hash and c["family"] in families])

        beside: int | None = self._edit(put)
        return beside

    def release(self, key: str) -> None:
        """It is evaluated, or never will be."""

        def remove(state: State) -> None:
            if state["claims"].get(key, {}).get("worker") == self.me:
                del state["claims"][key]

        if self._board is not None:
            self._edit(remove)

    def adopt(self, layer_hash: str, family: str) -> tuple[str, Claim] | None:
        """A dead worker's claim of that layer and family, now ours with one death more; None if there is none."""
        if self._board is None:
            return None

        def pick(state: State) -> tuple[str, Claim] | None:
            self._forget_the_dead(state)
            for key, data in state["claims"].items():
                claim = _claim(data)
                orphaned = data["worker"] not in state["workers"]
                if orphaned and (claim.layer_hash, claim.family) == (layer_hash, family):
                    data.update(worker=self.me, deaths=claim.deaths + 1)
                    return key, dataclasses.replace(claim, deaths=claim.deaths + 1)
            return None

        found: tuple[str, Claim] | None = self._edit(pick)
        return found

    def of_others(self, layer_hash: str, family: str) -> list[Claim]:
        """What other workers, dead or alive, have in hand of that layer and family."""
        return [
            claim
            for data in self._state()["claims"].values()
            if data["worker"] != self.me and ((claim := _claim(data)).layer_hash, claim.family) == (layer_hash, family)
        ]

    def board(self) -> State:
        """All that stands there, for whoever shows it."""
        return self._state()

    def workers(self) -> set[str]:
        """All that are at work, this one among them; those known to be dead leave the board."""

        def alive(state: State) -> set[str]:
            self._forget_the_dead(state)
            return set(state["workers"])

        return {self.me} if self._board is None else {*self._edit(alive), self.me}

    def alone(self) -> bool:
        """Whether no other worker is at work; False where there is no board that would tell."""
        return self._board is not None and self.workers() == {self.me}

    def last(self) -> bool:
        """Says that this worker's search is over; whether it is the last one, so that the rest is its to do.

        Where nothing but its beats tells whether another one lives, this takes until the next one, or the grace.
        """
        if self._board is None:
            return True

        def leave(state: State) -> State:
            if self.me in state["workers"]:
                state["workers"][self.me]["busy"] = False
            self._forget_the_dead(state)
            return copy.deepcopy(state)

        def busy(state: State) -> dict[str, Any]:
            return {name: w for name, w in state["workers"].items() if name != self.me and w["busy"]}

        self._entry["busy"] = False
        first, others = None, busy(self._edit(leave))
        while others:
            first = first or others
            if any(w["place"] == place() or w["beats"] != first[name]["beats"] for name, w in others.items()):
                return False
            time.sleep(0.2)
            others = {name: w for name, w in busy(self._edit(leave)).items() if name in first}
        return True

    def _state(self) -> State:
        state: State = empty() if self._board is None else self._edit(copy.deepcopy)
        return state

    def _edit(self, change: Callable[[State], Any]) -> Any:
        if self._problem is not None:
            raise self._problem
        assert self._board is not None
        return self._board.edit(change)

    def _beat(self) -> None:
        assert self._board is not None

        def up(state: State) -> None:
            self._entry["beats"] += 1
            state["workers"][self.me] = dict(self._entry)  # back on the board, if a pause made us look dead

        try:
            while not self._stop.wait(BEAT):
                self._board.edit(up)
        except BadInput as problem:  # the worker itself raises it at its next look at the board
            self._problem = problem

    def _forget_the_dead(self, state: State) -> None:
        for name, worker in list(state["workers"].items()):
            if name != self.me and self._is_dead(name, worker):
                del state["workers"][name]

    def _is_dead(self, name: str, worker: dict[str, Any]) -> bool:
        if worker["place"] == place() and _began(worker["pid"]) != worker["began"]:
            return True
        beats, since = self._seen.get(name, (None, 0))
        if beats != worker["beats"]:
            self._seen[name] = (worker["beats"], self._entry["beats"])
            return False
        return bool(self._entry["beats"] - since > GRACE_BEATS)


def _claim(data: dict[str, Any]) -> Claim:
    return Claim(**{f.name: data[f.name] for f in dataclasses.fields(Claim)})


@lru_cache
def place() -> str:
    """Where process numbers mean the same: one boot of one machine, one process namespace, one host name."""

    def read(path: str) -> str:
        try:
            return Path(path).read_text().strip()
        except OSError:
            return ""

    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return f"{socket.gethostname()} {read('/proc/sys/kernel/random/boot_id')} {namespace}"


def _began(pid: int) -> int | None:
    """When a running process began, in ticks since boot; None if there is none or it is dead and not yet reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])
