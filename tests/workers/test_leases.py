"""Leases on a file and on a database: one worker per candidate; a dead worker's leases are taken over."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import basis_search as bs
from basis_search.evaluation.candidate import Candidate
from basis_search.families import family as family_named
from basis_search.workers import liveness
from basis_search.workers.evaluation_log import Record
from basis_search.workers.leases import Lease, Leases
from basis_search.workers.postgres import Database
from basis_search.workers.postgres_log import DatabaseRecord
from basis_search.workers.shared_state import FileState
from basis_search.workers.worker import Worker


def a_layer(name: str = "fc") -> bs.Layer:
    torch.manual_seed(0)
    return bs.Layer.from_linear(torch.nn.Linear(96, 96), torch.randn(96, 96), name, batch=16)


@pytest.fixture(params=["file", "database"])
def views(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """views() -> another worker's view of the leases of one run."""
    if request.param == "file":
        return lambda: Leases(FileState(tmp_path / "claims.json"))
    address = request.getfixturevalue("url")
    return lambda: DatabaseRecord(Database(address), "run").leases


LEASE = Lease("layer", "lowrank", {"rank": 3}, 7)

FAMILY = ("lowrank",)


def test_a_candidate_is_leased_to_one_worker(views: Any) -> None:
    one, two = views(), views()
    with one.joined(0) as before, two.joined(1) as others:
        assert (before, others) == ([], [0])
        assert one.acquire("key", LEASE, FAMILY) is not None
        assert one.acquire("key", LEASE, FAMILY) is not None, "it has it already"
        assert two.acquire("key", LEASE, FAMILY) is None
        assert two.held_by_others("layer", "lowrank") == [LEASE]
        assert two.held_by_others("layer", "stl") == []
        assert two.take_over("layer", "lowrank") is None, "its worker lives"
        two.release("key")
        assert one.held_by_others("layer", "lowrank") == []
        assert two.acquire("key", LEASE, FAMILY) is None, "only its own worker ends a lease"
        one.release("key")
        assert two.acquire("key", LEASE, FAMILY) is not None
    assert views().held_by_others("layer", "lowrank") == [], "a worker that leaves ends its leases"


def test_the_last_candidate_wanted_is_leased_to_one_worker(views: Any) -> None:
    one, two = views(), views()
    other = dataclasses.replace(LEASE, spec={"rank": 4})
    with one.joined(0), two.joined(1):
        assert one.acquire("a", LEASE, ("lowrank",)) == 0
        assert two.acquire("a", LEASE, ("lowrank",)) is None
        assert two.acquire("b", other, ("lowrank", "stl")) == 1
        assert one.acquire("c", other, ("stl",)) == 0
        assert two.acquire("d", dataclasses.replace(other, layer_hash="another"), ("lowrank",)) == 0


def test_a_worker_evaluates_nothing_where_others_complete_the_number(tmp_path: Path) -> None:
    layer, record = a_layer(), Record(tmp_path / "evaluations.jsonl")
    mine, lowrank = Worker(record), family_named("lowrank")
    other = Leases(FileState(tmp_path / "claims.json"))
    with record.leases.joined(0), other.joined(1):
        assert other.acquire("theirs", Lease(layer.content_hash, "lowrank", {"rank": 3}, 7), FAMILY) is not None
        candidate = Candidate(layer.name, "lowrank", lowrank.Spec(rank=2))
        assert mine.evaluate(layer, candidate, 0, (("lowrank",), 1)) is None
        assert [c.spec for c in other.held_by_others(layer.content_hash, "lowrank")] == []
        found = mine.evaluate(layer, candidate, 1, (("lowrank",), 2))
        assert found is not None
        assert found.failure is None
        assert (
            mine.evaluate(layer, Candidate(layer.name, "lowrank", lowrank.Spec(rank=4)), 2, (("lowrank",), 2)) is None
        )


def test_a_dead_worker_s_lease_is_taken_over_and_its_death_counted(views: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = views(), views()
    with two.joined(1):
        one._join(one._shared, 0, None)
        assert one.acquire("key", LEASE, FAMILY) is not None
        real = liveness.start_time
        monkeypatch.setattr(liveness, "start_time", lambda pid: real(pid))
        entry = one._shared.edit(lambda state: state["workers"][one.worker_id])
        one._stop.set()
        one._thread.join()
        one._shared.edit(
            lambda state: state["workers"].update({one.worker_id: {**entry, "began": -1}})
        )  # as of another process
        assert two.take_over("layer", "stl") is None
        key, lease = two.take_over("layer", "lowrank")
        assert (key, lease.deaths, lease.trial) == ("key", 1, 7)
        assert two.take_over("layer", "lowrank") is None, "a living worker holds it again"


def test_a_worker_elsewhere_is_dead_when_its_heartbeats_stop(views: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats alone decide: no clock is read, so none can be set back."""
    monkeypatch.setattr(liveness, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(liveness, "MAX_MISSED_HEARTBEATS", 4)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    one, two = views(), views()
    monkeypatch.setattr(liveness, "place", lambda: "elsewhere")
    one._join(one._shared, 0, None)
    monkeypatch.setattr(liveness, "place", lambda: "here")
    one.acquire("key", LEASE, FAMILY)
    with two.joined(1):
        before = two._entry["beats"]
        for _ in range(20):
            assert two.take_over("layer", "lowrank") is None, "its heart beats"
            time.sleep(0.05)
        assert two._entry["beats"] > before
        assert two.finish_as_last() is False
        one._stop.set()
        one._thread.join()
        until = time.monotonic() + 20
        while (taken := two.take_over("layer", "lowrank")) is None and time.monotonic() < until:
            time.sleep(0.05)
        assert taken is not None
        assert two.finish_as_last()


def test_the_last_worker_to_finish_is_recognised(views: Any) -> None:
    one, two = views(), views()
    with one.joined(0), two.joined(1):
        assert not one.finish_as_last()
        assert two.finish_as_last(), "one is still there, but its search is over"


def test_workers_of_one_run_must_agree_on_its_layers(views: Any) -> None:
    with views().joined(0, {"layers": "abc"}), views().joined(1, {"layers": "abc"}):
        pass
    with (
        pytest.raises(bs.BadInput, match=r"begun on other layers \(abc, not xyz\)"),
        views().joined(0, {"layers": "xyz"}),
    ):
        pass


def test_a_candidate_over_which_two_workers_died_is_set_aside_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layer, record = a_layer(), Record(tmp_path / "e.jsonl")
    dead = {"number": 5, "place": liveness.place(), "pid": os.getpid(), "began": -1, "beats": 0, "busy": True}
    lease = {"layer_hash": layer.content_hash, "family": "lowrank", "spec": {"rank": 3}, "trial": None}

    def leave(state: dict[str, Any]) -> None:
        state["workers"]["dead"] = dead
        state["claims"]["poison"] = {"worker": "dead", "deaths": 1, **lease}
        state["claims"]["once"] = {"worker": "dead", "deaths": 0, **lease, "spec": {"rank": 4}}

    FileState(tmp_path / "claims.json").edit(leave)
    bs.search(layer, ("lowrank",), 3, record=record)
    by_rank = {e.candidate.spec.rank: e.failure for e in record}
    assert by_rank[3] == "set aside: 2 workers died while they evaluated it"
    assert by_rank[4] is None
    assert "lowrank {'rank': 3} of fc is set aside" in capsys.readouterr().err
    assert len(record) == 3


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    for content in ("[]", "{", '{"workers": 3}'):
        (tmp_path / "claims.json").write_text(content)
        with pytest.raises(bs.BadInput, match="claims"):
            FileState(tmp_path / "claims.json").edit(lambda state: None)
