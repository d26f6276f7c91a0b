"""Workers and watchers find the same workers dead: by the process table, or by heartbeats that stop."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from basis_search.monitor.watch import RunReader
from basis_search.workers import liveness
from basis_search.workers.leases import Leases
from basis_search.workers.shared_state import FileState, State

pytestmark = pytest.mark.fast
HERE = {"place": liveness.place(), "pid": os.getpid(), "began": liveness.start_time(os.getpid())}
ELSEWHERE = {"place": "elsewhere", "pid": 1, "began": 1}


def test_a_worker_elsewhere_dies_of_missed_heartbeats_counted_by_the_observer() -> None:
    is_dead = liveness.DeathCheck()
    assert not is_dead("a", {**ELSEWHERE, "beats": 3}, 10)
    assert not is_dead("a", {**ELSEWHERE, "beats": 3}, 10 + liveness.MAX_MISSED_HEARTBEATS)
    assert is_dead("a", {**ELSEWHERE, "beats": 3}, 11 + liveness.MAX_MISSED_HEARTBEATS)
    assert not is_dead("a", {**ELSEWHERE, "beats": 4}, 11 + liveness.MAX_MISSED_HEARTBEATS)
    assert not is_dead("b", {**ELSEWHERE, "beats": 3}, 99), "first seen just now"


def test_a_worker_of_this_machine_is_dead_at_once_when_its_process_has_ended() -> None:
    is_dead = liveness.DeathCheck()
    assert not is_dead("a", {**HERE, "beats": 0}, 0)
    assert is_dead("a", {**HERE, "began": -1, "beats": 1}, 0), "another process has its number"
    assert liveness.start_time(2**22 + 1) is None


def test_a_watcher_shows_silent_whom_the_workers_take_for_dead(write_run: Callable[..., Path]) -> None:
    folder = write_run(layers=1, workers=1)
    state = FileState(folder / "claims.json")

    def enter(shared: State) -> None:
        shared["workers"]["ended"] = {**HERE, "began": -1, "number": 3, "beats": 0, "busy": True}
        shared["workers"]["alive"] = {**HERE, "number": 4, "beats": 0, "busy": True}

    state.edit(enter)
    workers = RunReader(folder).update().workers
    assert (workers[3].silent, workers[4].silent) == (True, False)
    watched = Leases(state)
    assert watched.living_workers() == {"alive", watched.worker_id}
