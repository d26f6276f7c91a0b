"""search(): what it finds, records, resumes and refuses."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
import torch
from conformance import for_gpus

import basis_search as bs
from basis_search.evaluation.evaluate import evaluate
from basis_search.evaluation.timing import clock_for
from basis_search.families import FAMILIES
from basis_search.study import search
from basis_search.study.loop import search_layer
from basis_search.study.settings import SearchSettings
from basis_search.workers.evaluation_log import Record
from basis_search.workers.worker import Worker

if TYPE_CHECKING:
    from fake_cuda_devices import FakeCuda

optuna.logging.set_verbosity(optuna.logging.WARNING)
FAST = ("dense", "lowrank")


def a_layer(out: int = 64, inputs: int = 64, name: str = "fc", seed: int = 0) -> bs.Layer:
    torch.manual_seed(seed)
    return bs.Layer.from_linear(torch.nn.Linear(inputs, out), torch.randn(96, inputs), name, batch=32)


def steady(layer: bs.Layer, family: str, spec: Any, **options: Any) -> bs.Evaluation:
    """An evaluator with latencies that do not vary, on which proposals depend."""
    e = evaluate(layer, family, spec, **options)
    return e if e.failure else dataclasses.replace(e, latency=1e-3, latency_ratio=0.1 + e.flops_ratio)


def test_every_family_gets_evaluated_and_the_front_is_sound() -> None:
    layer, record = a_layer(48, 32), Record()
    front = bs.search(layer, trials=3, record=record)
    assert {e.candidate.family for e in record} == {name for name in FAMILIES if not for_gpus(name)}
    assert not [e.failure for e in record if e.failure and not e.stopped]  # which stop early, timings decide
    for e in front.evaluations:
        assert 0 <= e.error < 10
        assert e.gap < 1e-3
        assert e.latency_ratio > 0
        assert e.kernel != "reference"
    exact = [e for e in front.evaluations if e.error < 1e-20]
    assert exact, "the dense layer itself, or an exact scheme, has no error"


def test_no_spec_is_evaluated_twice_and_small_spaces_are_exhausted() -> None:
    seen: list[str] = []
    layer = a_layer(8, 8)
    bs.search(layer, ("lowrank",), trials=50, watch=lambda e: seen.append(e.candidate.hash))
    assert len(seen) == len(set(seen)) < 50


def test_a_search_resumes_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, path = a_layer(), tmp_path / "evaluations.jsonl"
    count = 0

    def stop_after_two() -> bool:
        return count >= 2

    def watch(e: bs.Evaluation) -> None:
        nonlocal count
        count += 1

    bs.search(layer, FAST, 4, storage=tmp_path / "j", record=Record(path), watch=watch, stop=stop_after_two)
    assert len(path.read_text().splitlines()) == 2
    first = path.read_text()
    fresh: list[str] = []
    bs.search(
        layer, FAST, 4, storage=tmp_path / "j", record=Record(path), watch=lambda e: fresh.append(e.candidate.hash)
    )
    assert path.read_text().startswith(first)
    assert len(Record(path)) == 5
    assert len(fresh) == 3

    def boom(*a: Any, **k: Any) -> Any:
        raise AssertionError("evaluated again")

    monkeypatch.setattr(search, "evaluate", boom)
    bs.search(layer, FAST, 4, storage=tmp_path / "j", record=Record(path))


def test_each_evaluation_is_written_before_the_next_starts(tmp_path: Path) -> None:
    path, sizes = tmp_path / "evaluations.jsonl", []
    bs.search(a_layer(), FAST, 3, record=Record(path), watch=lambda e: sizes.append(len(path.read_text().splitlines())))
    assert sizes == [1, 2, 3, 4]
    line = json.loads(path.read_text().splitlines()[0])
    assert line["started"] < line["finished"]
    assert line["worker"] == 0


def test_a_torn_last_line_is_dropped_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, layer = tmp_path / "evaluations.jsonl", a_layer()
    bs.search(layer, FAST, 2, record=Record(path))
    whole = path.read_text()
    path.write_text(whole + whole.splitlines()[0][:100])
    record = Record(path)
    assert len(record) == 3
    bs.search(layer, FAST, 3, record=record)
    assert "cut off by a crash" in capsys.readouterr().err
    assert path.read_text().startswith(whole)
    assert len(Record(path)) == 4


def test_two_records_of_one_file_see_each_other(tmp_path: Path) -> None:
    path, layer = tmp_path / "evaluations.jsonl", a_layer()
    mine, theirs = Record(path), Record(path)
    bs.search(layer, ("dense",), 1, record=mine)
    theirs.refresh()
    assert len(theirs) == 1
    bs.search(layer, ("dense",), 1, record=theirs)
    assert len(path.read_text().splitlines()) == 1


def test_a_study_is_not_resumed_with_another_space(tmp_path: Path) -> None:
    layer = a_layer()
    bs.search(layer, ("lowrank",), 2, storage=tmp_path / "j")
    space = bs.lowrank.Space()
    field = next(iter(space.__dict__))
    setattr(space, field, getattr(space, field) * 2)
    with pytest.raises(bs.BadInput, match="was begun with space"):
        bs.search(layer, ("lowrank",), 4, storage=tmp_path / "j", spaces={"lowrank": space})


@pytest.mark.parametrize("sampler", ["auto", "tpe", "random"])
def test_workers_have_different_seeds_and_equal_seeds_give_equal_studies(sampler: str) -> None:
    def specs(seed: int, worker: int) -> list[str]:
        found: list[str] = []
        layer = a_layer()
        bs.search(
            layer, ("lowrank",), 8, seed, worker=worker, sampler=sampler, reproducible=True,
            watch=lambda e: found.append(e.candidate.hash),
        )  # fmt: skip
        return found

    assert specs(0, 0) == specs(0, 0)
    assert specs(0, 0) != specs(0, 1)
    assert specs(0, 0) != specs(1, 0)


def test_equal_seeds_give_equal_reproducible_studies_with_noisy_latencies() -> None:
    """Two layers and all families, each latency multiplied by noise."""

    def specs(noise: int) -> list[str]:
        found: list[str] = []
        rng = random.Random(noise)

        def judge(*args: object, **kwargs: object) -> bs.Evaluation:
            e = evaluate(*args, **kwargs)  # type: ignore[arg-type]
            return dataclasses.replace(e, latency_ratio=e.latency_ratio * math.exp(rng.gauss(0, 1)))

        record = Record()
        for seed in (0, 1):
            bs.search(
                a_layer(seed=seed), total=14, record=record, judge=judge, reproducible=True,
                watch=lambda e: found.append(e.candidate.hash),
            )  # fmt: skip
        return found

    assert specs(0) == specs(1)


def test_the_stages_are_not_left_on_the_worker() -> None:
    worker = Worker(Record(), evaluator=steady)
    settings = SearchSettings({"lowrank": bs.lowrank.Space()}, trials=2)
    assert search_layer(a_layer(), settings, worker).evaluations
    assert worker.evaluator is steady
    assert all(e.rungs for e in worker.record)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.trials = 3  # type: ignore[misc]


QUIET = """
import optuna, torch
import basis_search as bs
layer = bs.Layer.from_linear(torch.nn.Linear(8, 8), torch.randn(32, 8))
bs.search(layer, ("lowrank",), trials=2)
assert optuna.logging.get_verbosity() == optuna.logging.INFO
optuna.create_study()
"""


def test_a_search_prints_nothing_and_leaves_optuna_s_verbosity_as_it_was() -> None:
    flags = ["-S"] if sys.flags.no_site else []
    done = subprocess.run([sys.executable, *flags, "-c", QUIET], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    (line,) = done.stderr.splitlines()  # of the study that the script itself creates
    assert "A new study created" in line


def test_bad_input() -> None:
    with pytest.raises(bs.BadInput, match="no family 'lowrnk'; did you mean 'lowrank'"):
        bs.search(a_layer(), ("lowrnk",))
    with pytest.raises(bs.BadInput, match="trials is 0"):
        bs.search(a_layer(), trials=0)
    with pytest.raises(bs.BadInput, match=r"no family accepts the layer 'fc' \(1 x 1\): lowrank: "):
        bs.search(a_layer(1, 1), ("lowrank",))


def test_a_wrong_kernel_is_a_failure_with_its_reason_and_on_no_front(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    wrong = replace(bs.lowrank.KERNELS[1], run=lambda spec, packed, x: torch.zeros(*x.shape[:-1], 64))
    monkeypatch.setattr(bs.lowrank, "KERNELS", (bs.lowrank.KERNELS[0], wrong))
    record = Record()
    front = bs.search(a_layer(), FAST, 2, record=record)
    failed = [e for e in record if e.candidate.family == "lowrank"]
    assert all("differs from its reference by" in (e.failure or "") and math.isinf(e.error) for e in failed)
    assert {e.candidate.family for e in front.evaluations} == {"dense"}


def test_evaluations_survive_json_and_newer_versions_are_refused() -> None:
    record = Record()
    bs.search(a_layer(), trials=2, record=record)
    for e in record:
        assert bs.Evaluation.from_json(json.loads(json.dumps(e.to_json()))) == e
        with pytest.raises(bs.BadInput, match="schema version 2"):
            bs.Evaluation.from_json(e.to_json() | {"schema_version": 2})
    with pytest.raises(bs.BadInput, match="no evaluation of basis_search"):
        bs.Evaluation.from_json({"schema_version": 1})


def test_the_clock_reaches_the_judge_and_known_evaluations_count_by_it(fake_cuda: FakeCuda) -> None:
    """A search by another clock reuses what was measured: both latencies are in the record."""
    asked: list[str] = []

    def judge(layer: bs.Layer, family: str, spec: Any, *, clock: str = "auto", **options: Any) -> bs.Evaluation:
        asked.append(clock)
        found = evaluate(layer, family, spec, clock=clock, **options)
        return dataclasses.replace(
            found, latency_graph=1e-6, latency_graph_ratio=0.25, latency_graph_spread=0.0, latency_ratio=4.0
        ).timed_by(clock_for(layer.device, clock))

    layer, record = a_layer(), Record()
    by_graph = bs.search(layer, ("dense",), 1, record=record, device="cuda", judge=judge)
    by_eager = bs.search(layer, ("dense",), 1, record=record, device="cuda", judge=judge, clock="eager")
    assert [front.evaluations[0].objectives[2] for front in (by_graph, by_eager)] == [0.25, 4.0]
    assert asked == ["auto"]
    bs.search(layer, ("lowrank",), 1, record=record, device="cuda", judge=judge, clock="eager", sampler="random")
    assert asked == ["auto", "eager"]
    for options, sentence in (
        ({"clock": "graph"}, "replays CUDA graphs, but the layer runs on cpu"),
        ({"clock": "graf"}, "did you mean 'graph'"),
        (
            {"clock": "eager", "judge": lambda layer, family, spec, *, threads, twin: None},
            "judge given has no parameter",
        ),
    ):
        with pytest.raises(bs.BadInput, match=sentence):
            bs.search(layer, ("dense",), 1, **options)
