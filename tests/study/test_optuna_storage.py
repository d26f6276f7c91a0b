"""Storages: a running PostgreSQL, the journal, the gRPC proxy; what they store, share and refuse."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import optuna
import postgres
import pytest
import torch

import basis_search as bs
from basis_search.evaluation.evaluate import evaluate
from basis_search.study import optuna_storage, optuna_study
from basis_search.workers import postgres as database
from basis_search.workers.evaluation_log import Record
from basis_search.workers.leases import Leases
from basis_search.workers.postgres import Database
from basis_search.workers.postgres_log import DatabaseRecord, DatabaseState
from basis_search.workers.shared_state import FileState

optuna.logging.set_verbosity(optuna.logging.WARNING)
FAST = ("dense", "lowrank")


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
    assert Leases(DatabaseState(Database(url), "")).held_by_others(layer.content_hash, "lowrank") == []


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


def test_a_damaged_row_is_reported_with_its_place(url: str) -> None:
    record = DatabaseRecord(Database(url), "run")
    row = "INSERT INTO basis_search_evaluations (run, key, body) VALUES ('run', 'a key', '{\"x\": 1}')"
    Database(url).transaction(lambda c: c.execute(row))
    sentence = "this is no evaluation of basis_search: it has no schema_version"
    with pytest.raises(bs.BadInput, match=rf"^postgresql://.*, row \d+ of basis_search_evaluations: {sentence}"):
        record.refresh()
    with pytest.raises(bs.BadInput, match=rf"^postgresql://.*, the evaluation a key\.\.\.: {sentence}"):
        record.cached("a key", "")
    Database(url).transaction(lambda c: c.execute("UPDATE basis_search_runs SET board = '{' WHERE run = 'run'"))
    with pytest.raises(bs.BadInput, match="run 'run' of basis_search_runs: this is not JSON"):
        record.leases.held_by_others("", "lowrank")


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
    from basis_search.evaluation import candidate, shared_latency
    from basis_search.workers import worker

    layer, record = a_layer(), Record(tmp_path / "e.jsonl", cache=tmp_path / "cache")
    bs.search(layer, ("dense",), 1, record=record)
    bs.search(layer, ("dense",), 1, record=record, threads=2)
    assert len({e.device for e in record}) == 2
    for module in (worker, shared_latency, candidate, sys.modules["basis_search.evaluation.evaluate"]):
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
    monkeypatch.setattr(optuna_study, "code_version", lambda: "9.9+a.b")
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
    monkeypatch.setattr(database, "MAX_AWAY_SECONDS", 0.5)
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

    with Leases(FileState(tmp_path / "claims.json")).joined(1):
        bs.search(layer, ("lowrank",), 2, storage=place, record=record, watch=die, wait=False)
        assert left_running() == 1, "the living one may be about to sign it"
    bs.search(layer, ("lowrank",), 3, storage=place, record=record)
    assert left_running() == 0
    assert len(record) == 3
