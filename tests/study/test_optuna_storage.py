"""Storages: a running PostgreSQL, the journal, the gRPC proxy; what they store, share and refuse."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import postgres
import pytest
import torch

import basis_search as bs
from basis_search.evaluation.evaluate import Candidate, evaluate
from basis_search.families import family as family_named
from basis_search.study import loop, optuna_storage, optuna_study
from basis_search.workers import leases as claiming
from basis_search.workers import postgres as database
from basis_search.workers.evaluation_log import Record
from basis_search.workers.leases import Claim, Claims
from basis_search.workers.postgres import Database
from basis_search.workers.postgres_log import DatabaseBoard, DatabaseRecord
from basis_search.workers.shared_state import FileBoard
from basis_search.workers.worker import Worker

optuna.logging.set_verbosity(optuna.logging.WARNING)
FAST = ("dense", "lowrank")


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    """A running PostgreSQL; without its programs the test is skipped, but never in continuous integration."""
    if postgres.binaries() is None:
        assert "CI" not in os.environ, "no PostgreSQL on this machine: ./scripts/test installs it"
        pytest.skip("no PostgreSQL on this machine: ./scripts/test installs it where it may")
    started = postgres.Server()
    started.start()
    yield started
    started.remove()


@pytest.fixture
def url(server: postgres.Server) -> str:
    """An empty database."""
    return server.create(f"test_{uuid.uuid4().hex}")


def a_layer(name: str = "fc", seed: int = 0) -> bs.Layer:
    torch.manual_seed(seed)
    return bs.Layer.from_linear(torch.nn.Linear(96, 96), torch.randn(96, 96), name, batch=16)


def test_a_search_is_stored_in_the_database_alone_and_resumes_from_it(url: str) -> None:
    layer, first, second = a_layer(), [], []
    bs.search(layer, FAST, 4, storage=url, watch=lambda e: first.append(e.key), stop=lambda: len(first) >= 3)
    front = bs.search(layer, FAST, 4, storage=url, watch=lambda e: second.append(e.key), seed=1)
    assert len(first) == 3
    assert len(second) == 2
    assert not set(first) & set(second)
    record = DatabaseRecord(Database(url), "")
    assert {e.key for e in record} == {*first, *second}
    assert {e.key for e in front.evaluations} <= {*first, *second}
    assert Claims(DatabaseBoard(Database(url), "")).of_others(layer.content_hash, "lowrank") == []


def test_processes_of_search_model_share_a_record_in_the_database(url: str) -> None:
    record, layers = DatabaseRecord(Database(url), "run"), [a_layer("a"), a_layer("b", 1)]
    seen: list[str] = []
    fronts = bs.search_model(
        layers, FAST, trials=3, workers=2, record=record, watch=lambda e: seen.append(f"{e.layer_hash} {e.candidate}")
    )
    assert all(fronts[name].evaluations for name in "ab")
    assert len(seen) == len(set(seen)) == len(record) == len(DatabaseRecord(Database(url), "run"))


def test_a_record_in_the_database_is_mirrored_once(url: str, tmp_path: Path) -> None:
    mine = DatabaseRecord(Database(url), "run", tmp_path / "evaluations.jsonl")
    theirs = DatabaseRecord(Database(url), "run", tmp_path / "evaluations.jsonl")
    layer = a_layer()
    bs.search(layer, ("dense",), 1, record=mine)
    evaluation = next(iter(mine))
    assert theirs.add(evaluation) is False
    theirs.refresh()
    assert [e.key for e in theirs] == [evaluation.key]
    lines = (tmp_path / "evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line)["candidate"]["hash"] for line in lines] == [evaluation.candidate.hash]
    assert json.loads(lines[0])["worker"] == 0


def test_runs_in_one_database_share_evaluations_but_not_studies(url: str) -> None:
    layer = a_layer()
    records = [DatabaseRecord(Database(url), run) for run in ("one", "two")]
    evaluated: list[str] = []

    def judge(layer: bs.Layer, family: str, spec: Any, **options: Any) -> bs.Evaluation:
        evaluated.append(str(spec))
        return evaluate(layer, family, spec, **options)

    for record in records:
        bs.search(layer, FAST, 3, storage=url, record=record, judge=judge)
    assert len(records[0]) == len(records[1]) == 4
    assert len(evaluated) < 8, "dense, at least, was known"
    assert {s.study_name for s in optuna.get_all_study_summaries(optuna_storage.open_storage(url))} == {
        "one/fc/dense", "one/fc/lowrank", "two/fc/dense", "two/fc/lowrank",
    }  # fmt: skip


def test_a_cache_folder_shares_evaluations_between_journals(tmp_path: Path) -> None:
    found: list[str] = []
    for run in ("one", "two"):
        record = Record(tmp_path / f"{run}.jsonl", cache=tmp_path / "cache")
        bs.search(a_layer(), FAST, 3, record=record, watch=lambda e: found.append(e.key))
        assert len(record) == 4
    lines = [json.loads(line) for line in (tmp_path / "two.jsonl").read_text().splitlines()]
    assert all(line.get("cached") for line in lines)
    one = [json.loads(line) for line in (tmp_path / "one.jsonl").read_text().splitlines()]
    assert [line["latency"] for line in one] == [line["latency"] for line in lines]


def test_another_device_or_other_code_is_another_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from basis_search.evaluation import shared_latency
    from basis_search.workers import worker

    layer, record = a_layer(), Record(tmp_path / "e.jsonl", cache=tmp_path / "cache")
    bs.search(layer, ("dense",), 1, record=record)
    bs.search(layer, ("dense",), 1, record=record, threads=2)
    assert len({e.device for e in record}) == 2
    for module in (worker, loop, shared_latency, sys.modules["basis_search.evaluation.evaluate"]):
        monkeypatch.setattr(module, "code_version", lambda: "9.9+a.b")
    bs.search(layer, ("dense",), 1, record=record)
    assert len(record) == 3


def test_an_unreachable_database_is_named_without_its_password(server: postgres.Server) -> None:
    port = server.port
    for url, what in (
        (server.url(password="wrong-one"), "password authentication failed"),
        ("postgresql://me:hid%20den@127.0.0.1:1/x", "refused"),
        (f"postgresql://127.0.0.1:{port}/x?user=me&password=hidden", "failed"),
        (server.url("missing"), "does not exist"),
    ):
        with pytest.raises(bs.BadInput) as refusal:
            optuna_storage.open_storage(url)
        sentence = str(refusal.value)
        assert what in sentence
        assert "127.0.0.1" in sentence
        assert not any(p in sentence for p in ("wrong-one", "hid%20den", "hid den", "hidden", postgres.PASSWORD))
    with pytest.raises(bs.BadInput, match=r"no gRPC proxy answers at grpc://127\.0\.0\.1:1 "):
        optuna_storage.open_storage("grpc://127.0.0.1:1")
    with pytest.raises(bs.BadInput, match="there is no storage mysql://"):
        optuna_storage.open_storage("mysql://me:hidden@host/x")
    with pytest.raises(bs.BadInput, match="names no host and port"):
        optuna_storage.open_storage("grpc://localhost")


def test_passwords_are_found_wherever_they_stand() -> None:
    url = "postgresql://me:a%2Fb:c@d@host:5/x?sslpassword=zzz&a=b"
    assert database.redacted(url) == "postgresql://me:***@host:5/x?sslpassword=***&a=b"
    assert database.without_password("no a/b:c@d, a%2Fb:c@d, zzz", url) == "no ***, ***, ***"
    assert database.redacted("postgresql://host/x") == "postgresql://host/x"


def test_a_url_comes_only_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(optuna_storage.ENVIRONMENT, raising=False)
    assert optuna_storage.resolve(None, tmp_path) == tmp_path
    assert optuna_storage.resolve("a.journal", tmp_path) == "a.journal"
    with pytest.raises(bs.BadInput, match=r"postgresql://me:\*\*\*@host/x would be saved .* BASIS_SEARCH_STORAGE"):
        optuna_storage.resolve("postgresql://me:hidden@host/x", tmp_path)
    monkeypatch.setenv(optuna_storage.ENVIRONMENT, "postgresql://me:hidden@host/x")
    assert optuna_storage.resolve(None, tmp_path) == "postgresql://me:hidden@host/x"
    with pytest.raises(bs.BadInput, match=r"both name a storage") as refusal:
        optuna_storage.resolve("a.journal", tmp_path)
    assert "hidden" not in str(refusal.value)


def test_a_study_of_another_layer_or_of_other_code_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bs.search(a_layer(), ("lowrank",), 2, storage=url)
    with pytest.raises(bs.BadInput, match=r"'fc/lowrank' in postgresql://search:\*\*\*@.* another layer of that name"):
        bs.search(a_layer(seed=1), ("lowrank",), 2, storage=url)
    for module in (loop, optuna_study):
        monkeypatch.setattr(module, "code_version", lambda: "9.9+a.b")
    with pytest.raises(bs.BadInput, match=r"other code: basis_search .*\+.*, not 9\.9\+a; resume it with the same"):
        bs.search(a_layer(), ("lowrank",), 4, storage=url)


def test_a_database_that_is_killed_and_started_again_loses_nothing(server: postgres.Server, url: str) -> None:
    layer, seen = a_layer(), []

    def watch(evaluation: bs.Evaluation) -> None:
        seen.append(evaluation.key)
        if len(seen) == 2:
            server.kill()
            threading.Timer(1.0, server.start).start()

    record = DatabaseRecord(Database(url), "run")
    bs.search(layer, FAST, 6, storage=url, record=record, watch=watch)
    assert len(seen) == len(set(seen)) == 7
    assert {e.key for e in DatabaseRecord(Database(url), "run")} == set(seen)


def test_a_database_that_stays_away_ends_the_search_with_a_message(
    server: postgres.Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "PATIENCE", 0.5)
    try:
        with pytest.raises(bs.BadInput, match=r"search:\*\*\*@127.* has not answered for") as refusal:
            bs.search(a_layer(), FAST, 6, storage=url, watch=lambda e: server.stop())
        assert postgres.PASSWORD not in str(refusal.value)
    finally:
        server.start()
    assert len(DatabaseRecord(Database(url), "")) == 1


def test_a_journal_cut_by_a_crash_resumes_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    bs.search(a_layer(), ("lowrank",), 2, storage=path)
    whole = path.read_bytes()
    for cut in (1, 10, 100):
        other = tmp_path / f"cut-{cut}"
        other.write_bytes(whole[:-cut])
        bs.search(a_layer(), ("lowrank",), 3, storage=other)
        assert all(json.loads(line) for line in other.read_text().splitlines())
    damaged = tmp_path / "damaged"
    damaged.write_bytes(whole[:50] + b"\n" + whole)
    with pytest.raises(bs.BadInput, match=r"damaged is damaged .* no evaluation is lost"):
        bs.search(a_layer(), ("lowrank",), 3, storage=damaged)


def test_the_proxy_in_front_of_a_journal(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "basis_search.cli", "storage-proxy", "--port", "0"]
    command += ["--storage", str(tmp_path / "journal")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as proxy:
        assert proxy.stdout is not None
        address = proxy.stdout.readline().split()[-1]
        try:
            record = Record(tmp_path / "e.jsonl")
            bs.search(a_layer(), FAST, 3, storage=address, record=record)
            assert len(record) == 4
            names = optuna.get_all_study_names(optuna_storage.open_storage(tmp_path / "journal"))
            assert set(names) == {"fc/dense", "fc/lowrank"}
        finally:
            proxy.send_signal(signal.SIGINT)
    assert proxy.returncode == 0


@pytest.fixture(params=["file", "database"])
def boards(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """boards() -> another view of one board."""
    if request.param == "file":
        return lambda: Claims(FileBoard(tmp_path / "claims.json"))
    address = request.getfixturevalue("url")
    return lambda: DatabaseRecord(Database(address), "run").claims


CLAIM = Claim("layer", "lowrank", {"rank": 3}, 7)
FAMILY = ("lowrank",)


def test_one_candidate_is_in_one_workers_hands(boards: Any) -> None:
    one, two = boards(), boards()
    with one.at_work(0) as before, two.at_work(1) as others:
        assert (before, others) == ([], [0])
        assert one.take("key", CLAIM, FAMILY) is not None
        assert one.take("key", CLAIM, FAMILY) is not None, "it has it already"
        assert two.take("key", CLAIM, FAMILY) is None
        assert two.of_others("layer", "lowrank") == [CLAIM]
        assert two.of_others("layer", "stl") == []
        assert two.adopt("layer", "lowrank") is None, "its worker lives"
        two.release("key")
        assert one.of_others("layer", "lowrank") == []
        assert two.take("key", CLAIM, FAMILY) is None, "only its own worker lets go"
        one.release("key")
        assert two.take("key", CLAIM, FAMILY) is not None
    assert boards().of_others("layer", "lowrank") == [], "who leaves takes its claims along"


def test_the_last_one_wanted_is_taken_by_one_worker(boards: Any) -> None:
    one, two = boards(), boards()
    other = dataclasses.replace(CLAIM, spec={"rank": 4})
    with one.at_work(0), two.at_work(1):
        assert one.take("a", CLAIM, ("lowrank",)) == 0
        assert two.take("a", CLAIM, ("lowrank",)) is None
        assert two.take("b", other, ("lowrank", "stl")) == 1
        assert one.take("c", other, ("stl",)) == 0
        assert two.take("d", dataclasses.replace(other, layer_hash="another"), ("lowrank",)) == 0


def test_a_worker_leaves_what_others_complete(tmp_path: Path) -> None:
    layer, record = a_layer(), Record(tmp_path / "evaluations.jsonl")
    mine, lowrank = Worker(record), family_named("lowrank")
    other = Claims(FileBoard(tmp_path / "claims.json"))
    with record.claims.at_work(0), other.at_work(1):
        assert other.take("theirs", Claim(layer.content_hash, "lowrank", {"rank": 3}, 7), FAMILY) is not None
        candidate = Candidate(layer.name, "lowrank", lowrank.Spec(rank=2))
        assert mine.evaluate(layer, candidate, 0, (("lowrank",), 1)) is None
        assert [c.spec for c in other.of_others(layer.content_hash, "lowrank")] == []
        found = mine.evaluate(layer, candidate, 1, (("lowrank",), 2))
        assert found is not None
        assert found.failure is None
        assert (
            mine.evaluate(layer, Candidate(layer.name, "lowrank", lowrank.Spec(rank=4)), 2, (("lowrank",), 2)) is None
        )


def test_what_a_dead_worker_had_in_hand_is_taken_up_and_counted(boards: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = boards(), boards()
    with two.at_work(1):
        one._start(one._board, 0, None)
        assert one.take("key", CLAIM, FAMILY) is not None
        real = claiming._began
        monkeypatch.setattr(claiming, "_began", lambda pid: real(pid))
        entry = one._board.edit(lambda state: state["workers"][one.me])
        one._stop.set()
        one._thread.join()
        one._board.edit(
            lambda state: state["workers"].update({one.me: {**entry, "began": -1}})
        )  # as of another process
        assert two.adopt("layer", "stl") is None
        key, claim = two.adopt("layer", "lowrank")
        assert (key, claim.deaths, claim.trial) == ("key", 1, 7)
        assert two.adopt("layer", "lowrank") is None, "it is in living hands again"


def test_a_worker_elsewhere_is_dead_when_its_beats_stand_still(boards: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats alone decide: no clock is asked, be it set back or not."""
    monkeypatch.setattr(claiming, "BEAT", 0.05)
    monkeypatch.setattr(claiming, "GRACE_BEATS", 4)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    one, two = boards(), boards()
    monkeypatch.setattr(claiming, "place", lambda: "elsewhere")
    one._start(one._board, 0, None)
    monkeypatch.setattr(claiming, "place", lambda: "here")
    one.take("key", CLAIM, FAMILY)
    with two.at_work(1):
        before = two._entry["beats"]
        for _ in range(20):
            assert two.adopt("layer", "lowrank") is None, "it beats"
            time.sleep(0.05)
        assert two._entry["beats"] > before
        assert two.last() is False
        one._stop.set()
        one._thread.join()
        until = time.monotonic() + 20
        while (adopted := two.adopt("layer", "lowrank")) is None and time.monotonic() < until:
            time.sleep(0.05)
        assert adopted is not None
        assert two.last()


def test_trials_that_dead_workers_left_running_end_with_the_search(tmp_path: Path) -> None:
    layer, record, place = a_layer(), Record(tmp_path / "evaluations.jsonl"), tmp_path / "journal"
    asked = False

    def left_running() -> int:
        search = optuna.load_study(study_name="fc/lowrank", storage=optuna_storage.open_storage(place))
        return sum(trial.state == optuna.trial.TrialState.RUNNING for trial in search.get_trials())

    def die(evaluation: bs.Evaluation) -> None:  # one worker before it signed its trial, one after
        nonlocal asked
        if not asked:
            search = optuna.load_study(study_name="fc/lowrank", storage=optuna_storage.open_storage(place))
            search.ask()
            search.ask().set_user_attr("worker", "gone")
            asked = True

    with Claims(FileBoard(tmp_path / "claims.json")).at_work(1):
        bs.search(layer, ("lowrank",), 2, storage=place, record=record, watch=die, wait=False)
        assert left_running() == 1, "the living one may be about to sign it"
    bs.search(layer, ("lowrank",), 3, storage=place, record=record)
    assert left_running() == 0
    assert len(record) == 3


def test_the_last_one_is_told_so(boards: Any) -> None:
    one, two = boards(), boards()
    with one.at_work(0), two.at_work(1):
        assert not one.last()
        assert two.last(), "one is still there, but its search is over"


def test_a_run_keeps_to_what_it_is_about(boards: Any) -> None:
    with boards().at_work(0, {"layers": "abc"}), boards().at_work(1, {"layers": "abc"}):
        pass
    with (
        pytest.raises(bs.BadInput, match=r"begun on other layers \(abc, not xyz\)"),
        boards().at_work(0, {"layers": "xyz"}),
    ):
        pass


def test_a_candidate_over_which_two_workers_died_is_set_aside_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layer, record = a_layer(), Record(tmp_path / "e.jsonl")
    dead = {"number": 5, "place": claiming.place(), "pid": os.getpid(), "began": -1, "beats": 0, "busy": True}
    claim = {"layer_hash": layer.content_hash, "family": "lowrank", "spec": {"rank": 3}, "trial": None}

    def leave(state: dict[str, Any]) -> None:
        state["workers"]["dead"] = dead
        state["claims"]["poison"] = {"worker": "dead", "deaths": 1, **claim}
        state["claims"]["once"] = {"worker": "dead", "deaths": 0, **claim, "spec": {"rank": 4}}

    FileBoard(tmp_path / "claims.json").edit(leave)
    bs.search(layer, ("lowrank",), 3, record=record)
    by_rank = {e.candidate.spec.rank: e.failure for e in record}
    assert by_rank[3] == "set aside: 2 workers died while they had it in hand"
    assert by_rank[4] is None
    assert "lowrank {'rank': 3} of fc is set aside" in capsys.readouterr().err
    assert len(record) == 3


def test_a_damaged_board_is_said(tmp_path: Path) -> None:
    for content in ("[]", "{", '{"workers": 3}'):
        (tmp_path / "claims.json").write_text(content)
        with pytest.raises(bs.BadInput, match="claims"):
            FileBoard(tmp_path / "claims.json").edit(lambda state: None)
