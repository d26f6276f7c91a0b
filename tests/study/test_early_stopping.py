"""Early stopping: which candidates stop, what is recorded, and that they are on no front and not among the failures."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import optuna
import pytest
import torch

import basis_search as bs
from basis_search.evaluation import evaluate as evaluating
from basis_search.evaluation.candidate import Evaluation
from basis_search.evaluation.evaluate import evaluate
from basis_search.evaluation.pareto import ParetoFront
from basis_search.families import pq
from basis_search.layers.layer import Layer
from basis_search.report import findings
from basis_search.study.early_stopping import SAMPLE_DIVISOR, Stages, dominating
from basis_search.study.proposer import Proposer
from basis_search.study.settings import SearchSettings
from basis_search.workers.evaluation_log import Record

optuna.logging.set_verbosity(optuna.logging.ERROR)


def a_layer(rows: int = 512, out: int = 64, features: int = 32) -> Layer:
    generator = torch.Generator().manual_seed(0)
    # All but four input directions are nearly zero: low rank beats the rest.
    scale = torch.cat([torch.ones(4), torch.full((features - 4,), 1e-3)])
    linear = torch.nn.Linear(features, out)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(out, features, generator=generator))
    return Layer.from_linear(linear, torch.randn(rows, features, generator=generator) * scale, batch=64)


def rival(layer: Layer, error: float = 1e-9, latency: float = 1e-3) -> Evaluation:
    """A finished evaluation that dominates nearly everything."""
    e = evaluate(layer, "lowrank", bs.lowrank.Spec(1))
    return dataclasses.replace(e, error=error, latency_ratio=latency)


class Counting:
    """evaluate() that notes its calls: rows of the layer and options."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, dict[str, Any]]] = []

    def __call__(self, layer: Layer, family: str, spec: Any, **options: Any) -> Evaluation:
        self.calls.append((len(layer.inputs), options))
        return evaluate(layer, family, spec, **options)


def test_a_candidate_dominated_by_prediction_is_never_fitted() -> None:
    layer, counting = a_layer(), Counting()
    best = rival(layer)
    found = Stages(counting, Proposer(layer, SearchSettings({"pq": pq.Space()})), lambda: [best])(
        layer, "pq", pq.Spec(4), threads=1
    )
    assert not counting.calls
    assert found.stopped == "forecast"
    assert "dominated by lowrank (rank 1) with an error of 1e-09" in (found.failure or "")
    assert found.rungs["forecast"] > 0
    assert not ParetoFront.of([found]).evaluations


def test_families_that_fit_to_rows_are_fitted_to_few_samples_first() -> None:
    layer, counting = a_layer(rows=4096), Counting()
    spec = pq.Spec(4)
    whole = evaluate(layer, "pq", spec)
    # The prediction alone does not stop it: the rival is only a little better than predicted.
    predicted = pq.forecast(spec, layer).error
    best = rival(layer, error=min(predicted, whole.error) / 4, latency=1e-6)
    found = Stages(counting, Proposer(layer, SearchSettings({"pq": pq.Space()})), lambda: [best])(
        layer, "pq", spec, threads=1
    )
    assert [rows for rows, _ in counting.calls] == [len(layer.inputs) // SAMPLE_DIVISOR]
    assert found.stopped == "few samples"
    assert found.rungs["few samples"] == pytest.approx(whole.error, rel=0.5)
    assert "few samples" in (found.failure or "")


def test_a_dominated_fit_is_neither_checked_nor_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = a_layer()
    error = evaluate(layer, "lowrank", bs.lowrank.Spec(4)).error
    monkeypatch.setattr(evaluating, "_steadiest", None)
    found = evaluate(layer, "lowrank", bs.lowrank.Spec(4), most_error=error * 0.99)
    assert found.stopped == "fit"
    assert found.rungs == {"fit": error}
    assert set(found.seconds) == {"fit"}


def test_a_candidate_that_nothing_dominates_is_evaluated_in_full() -> None:
    layer, counting = a_layer(), Counting()
    slow = rival(layer, error=1e-12, latency=50.0)
    found = Stages(counting, Proposer(layer, SearchSettings({"lowrank": bs.lowrank.Space()})), lambda: [slow])(
        layer, "lowrank", bs.lowrank.Spec(4), threads=1
    )
    assert not found.stopped
    assert found.failure is None
    assert found.latency_ratio > 0
    assert len(counting.calls) == 1
    assert found.spectrum[0] <= found.spectrum[-1] <= 1


def test_domination_compares_all_three_objectives() -> None:
    layer = a_layer()
    e = rival(layer, error=0.1, latency=0.5)
    assert dominating([e], e.flops_ratio, 0.5)[0] == 0.1
    assert dominating([e], e.flops_ratio * 0.99, 0.5)[0] == float("inf")
    assert dominating([e], e.flops_ratio, 0.49)[0] == float("inf")
    assert dominating([dataclasses.replace(e, failure="broken")], 1.0, 1.0)[0] == float("inf")


def test_stopped_candidates_are_recorded_with_stage_and_reason_and_not_tried_again(tmp_path: Any) -> None:
    layer, path, storage = a_layer(), tmp_path / "evaluations.jsonl", tmp_path / "journal"
    record = Record(path)
    front = bs.search(layer, ("lowrank", "pq"), 8, record=record, storage=storage)
    stopped = [e for e in record if e.stopped]
    assert stopped, "most ranks of this layer are dominated by rank 4"
    assert all(e.failure and e.rungs for e in stopped)
    assert not {e.candidate for e in stopped} & {e.candidate for e in front.evaluations}
    lines = {json.loads(line)["candidate"]["hash"]: json.loads(line) for line in path.read_text().splitlines()}
    assert {h for h, line in lines.items() if line["stopped"]} == {e.candidate.hash for e in stopped}
    again: list[Evaluation] = []
    bs.search(layer, ("lowrank", "pq"), 8, record=Record(path), storage=storage, watch=again.append)
    assert not again
    assert list(Record(path)) == list(record)
    backend = optuna.storages.journal.JournalFileBackend(str(storage))
    study = optuna.load_study(study_name="linear/pq", storage=optuna.storages.JournalStorage(backend))
    pruned = [t for t in study.trials if t.state == optuna.trial.TrialState.PRUNED]
    assert len(pruned) >= sum(e.candidate.family == "pq" for e in stopped) > 0
    assert all(t.user_attrs["stopped"] and t.user_attrs["reason"] for t in pruned)


def test_a_report_does_not_count_stopped_candidates_as_failures() -> None:
    layer = a_layer()
    done = evaluate(layer, "lowrank", bs.lowrank.Spec(4))
    broken = dataclasses.replace(done, failure="it broke")
    given_up = evaluate(layer, "lowrank", bs.lowrank.Spec(2), most_error=0.0)
    assert [f.reason for f in findings.failures([done, broken, given_up])] == ["it broke"]
    assert findings.stopped([done, broken, given_up]) == [("fit", 1, ["lowrank"])]
