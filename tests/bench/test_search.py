"""Replay of studies on stored evaluations: seconds charged, candidates stopped early, hypervolumes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, cast

import optuna
import pytest
import torch

import basis_search as bs
from basis_search.bench.search import optuna_samplers
from basis_search.bench.search import replay as bench
from basis_search.bench.search.evaluation_table import EvaluationTable, TableEntry
from basis_search.bench.search.hypervolume import Course
from basis_search.evaluation.candidate import Candidate, Evaluation, failed
from basis_search.layers.layer import Layer
from basis_search.study.proposals import LEAST, proposal_of
from basis_search.study.surrogate import REFERENCE

pytestmark = pytest.mark.fast
optuna.logging.set_verbosity(optuna.logging.ERROR)


def a_layer() -> Layer:
    torch.manual_seed(0)
    return Layer.from_linear(torch.nn.Linear(32, 64), torch.randn(256, 32), "fc", batch=64)


def evaluated(layer: Layer, family: str, spec: Any) -> Evaluation:
    """An evaluation as forecast, with 1.5 times the error."""
    forecast = proposal_of(layer, family, spec, {}).forecast
    return dataclasses.replace(
        failed(layer, Candidate(layer.name, family, spec), ""),
        failure=None, error=1.5 * forecast.error, latency=1e-3, latency_ratio=forecast.latency_ratio, gap=0.0,
        kernel="torch", seconds={"fit": 1.0, "gate": 1.0, "clock": 3.0},
    )  # fmt: skip


def table_of(seconds: float) -> EvaluationTable:
    """Every candidate takes `seconds` to fit and four times that for its kernels, a quarter of it for the check."""

    def entry(layer: Layer, family: str, spec: Any) -> TableEntry:
        return TableEntry(evaluated(layer, family, spec), {"fit": seconds, "kernel": 4 * seconds})

    return cast("EvaluationTable", entry)


def test_a_stored_evaluation_is_charged_and_stopped_as_evaluate_would() -> None:
    layer, table = a_layer(), table_of(100.0)
    watch = bench.Stopwatch()
    whole = watch.replay(table, layer, "lowrank", bs.lowrank.Spec(4))
    assert not whole.stopped
    assert watch.stored == 500.0
    stopped = watch.replay(table, layer, "lowrank", bs.lowrank.Spec(4), whole.error / 2)
    assert stopped.stopped == "fit"
    assert watch.stored == 500.0 + 100.0 + 400.0 / 4
    assert 0 <= watch.seconds - watch.stored < 60


@pytest.mark.slow
def test_repeats_are_trials_without_costs() -> None:
    layer = a_layer()
    steps = bench.plain(table_of(1.0), layer, "random", 30, seed=0)
    assert len({s.evaluation.candidate.hash for s in steps}) == 30
    assert steps[-1].trials > 30, "one draw in six is dense"
    assert [s.trials for s in steps] == sorted({s.trials for s in steps})
    assert steps[-1].seconds == pytest.approx(5.0 * 30, abs=20)
    again = bench.plain(table_of(1.0), layer, "nsga2", 30, seed=0)
    first, same = ([s.evaluation.candidate for s in some if s.trials <= 50] for some in (steps, again))
    assert first == same, "NSGA-II's first population of 50 is drawn uniformly"


@pytest.mark.slow
def test_a_guided_study_is_a_search_that_learns() -> None:
    layer = a_layer()
    steps = bench.guided(table_of(1.0), layer, 20, 0, ())
    assert len(steps) == 20
    assert steps[-1].trials >= 20
    assert {s.evaluation.candidate.hash for s in steps} == {
        s.evaluation.candidate.hash for s in bench.guided(table_of(1.0), layer, 20, 0, ())
    }
    random = bench.plain(table_of(1.0), layer, "random", 20, seed=0)
    assert bench.volumes(steps)[-1] > bench.volumes(random)[-1]


def test_volumes_grow_and_a_course_is_read_by_trials_and_by_seconds() -> None:
    layer = a_layer()
    middle = [math.sqrt(a * b) for a, b in zip(LEAST, REFERENCE, strict=True)]
    e = dataclasses.replace(evaluated(layer, "lowrank", bs.lowrank.Spec(4)), error=middle[0], latency_ratio=middle[2])
    share = (math.log(REFERENCE[1]) - math.log(e.flops_ratio)) / (math.log(REFERENCE[1]) - math.log(LEAST[1]))
    broken = dataclasses.replace(e, failure="broken")
    steps = [bench.ReplayedTrial(broken, 1.0, 1), bench.ReplayedTrial(e, 2.0, 4), bench.ReplayedTrial(e, 3.0, 9)]
    volumes = bench.volumes(steps)
    assert volumes[0] == 0
    assert volumes[1] == volumes[2] == pytest.approx(share / 4)
    course = Course.of(steps)
    assert course.at(3) == (0, 1.0)
    assert course.at(8) == (volumes[1], 2.0)
    assert course.at(3, distinct=True) == (volumes[2], 3.0)
    assert course.seconds_to(volumes[1]) == 2.0
    assert course.seconds_to(0.99) == math.inf


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [name for name in optuna_samplers.METHODS if name.startswith("tpe")])
def test_a_sampler_proposes_until_enough_distinct_candidates_are_evaluated(sampler: str) -> None:
    layer = a_layer()
    steps = optuna_samplers.study(table_of(1.0), layer, sampler, 30, 0)
    assert len({s.evaluation.candidate.hash for s in steps}) == len(steps) == 30
    assert all(0 <= s.stored <= s.seconds for s in steps)
    if optuna_samplers.METHODS[sampler].forecasts:
        first = optuna_samplers.ranked_by_forecast(layer, bench.spaces_of(layer), 25, 0)
        assert [s.evaluation.candidate.hash for s in steps[:25]] == [g.hash for g in first]


def test_rows_of_samplers_are_relative_to_randoms_median() -> None:
    def curve(*volumes: float) -> dict[str, list[float]]:
        seconds = [float(n + 1) for n in range(100)]
        steps = [volumes[min(n // 25, len(volumes) - 1)] for n in range(100)]
        return {"volumes": steps, "seconds": seconds, "proposing": [0.5 * s for s in seconds]}

    found = {f"fc, random, {seed}": curve(0.125, 0.25 + 0.125 * seed, 0.5) for seed in range(3)}
    found |= {f"fc, guided, {seed}": curve(0.25, 0.375, 0.625 + 0.125 * seed) for seed in range(3)}
    random, guided = optuna_samplers.rows_of(found, ["fc"])
    assert (random["case"], random["sampler"], random["seeds"]) == ("fc", "random", 3)
    assert random["V at 25"] == random["V at 50"] == random["V at 100"] == 1.0
    assert random["spread at 50"] == pytest.approx(1 / 3)
    assert (guided["V at 25"], guided["V at 100"]) == (pytest.approx(2.0), pytest.approx(1.5))
    assert (guided["trials"], guided["seconds"]) == (26, 26.0), "0.375, random's median after 50 trials"
    assert guided["ask and tell, ms"] == pytest.approx(500)
