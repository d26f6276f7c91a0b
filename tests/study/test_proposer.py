"""Proposals: pools, corrected predictions, volumes, warm starts, limits and samplers."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from conformance import FOR_GPUS, asked, for_gpus

import basis_search as bs
from basis_search.evaluation import constraints
from basis_search.evaluation.candidate import Candidate, Evaluation, failed
from basis_search.evaluation.pareto import ParetoFront, hypervolume
from basis_search.families import FAMILIES
from basis_search.layers.layer import Layer
from basis_search.layers.output_spectrum import shape
from basis_search.study import samplers
from basis_search.study.proposals import (
    LEAST,
    draw,
    logarithms,
    proposal_of,
)
from basis_search.study.proposer import Proposer, similarity
from basis_search.study.settings import SearchSettings
from basis_search.study.surrogate import (
    REFERENCE,
    DominatedVolume,
    Residuals,
    Surrogate,
)
from basis_search.workers.evaluation_log import Record

pytestmark = pytest.mark.fast
optuna.logging.set_verbosity(optuna.logging.ERROR)

SPACES = {name: module.Space() for name, module in FAMILIES.items()}
SMALL = {name: SPACES[name] for name in ("dense", "lowrank", "kronecker", "pq")}


def a_layer(name: str = "fc", out: int = 64, features: int = 48, seed: int = 0, decay: float = 0.5) -> Layer:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(512, features, generator=generator) * torch.arange(1, features + 1) ** -decay
    linear = torch.nn.Linear(features, out)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(out, features, generator=generator))
    return Layer.from_linear(linear, rows, name, batch=64)


def found(layer: Layer, family: str, spec: Any, error: float, latency: float) -> Evaluation:
    """A complete evaluation, as a search records it."""
    params = next((g.params for g in draw(layer, family, SPACES[family]) if g.spec == spec), {})
    predicted = proposal_of(layer, family, spec, params).forecast
    return dataclasses.replace(
        failed(layer, Candidate(layer.name, family, spec), ""),
        failure=None, error=error, latency=latency * 1e-3, latency_ratio=latency, latency_spread=0.0, gap=0.0,
        kernel="torch", kind=layer.kind, spectrum=shape(layer), asked=params,
        rungs={"forecast": predicted.error, "forecast latency": predicted.latency_ratio},
    )  # fmt: skip


def evaluate_by(truth: Callable[[str, Any, float, float], tuple[float, float]]) -> Any:
    """An evaluator of made-up errors and latencies: the predicted ones, changed by `truth`."""

    def made_up(layer: Layer, family: str, spec: Any, **options: Any) -> Evaluation:
        predicted = proposal_of(layer, family, spec, {}).forecast
        error, latency = truth(family, spec, predicted.error, predicted.latency_ratio)
        return found(layer, family, spec, error, latency)

    return made_up


@pytest.mark.slow
@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_drawn_spec_is_suggested_again_by_its_parameters(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = asked(name, FOR_GPUS[0]) if for_gpus(name) else a_layer()
    if not torch.cuda.is_available():  # forecasts do without
        monkeypatch.setattr(Layer, "on_device", lambda layer: layer)
    drawn = draw(layer, name, SPACES[name], 100)
    assert len({g.spec for g in drawn}) == len(drawn) >= 1
    assert [g.spec for g in draw(layer, name, SPACES[name], 100)] == [g.spec for g in drawn]
    for g in drawn:
        trial: Any = optuna.trial.FixedTrial(dict(g.params))
        assert FAMILIES[name].suggest(trial, layer, SPACES[name]) == g.spec
        assert g.logs[1] == pytest.approx(
            math.log(max(LEAST[1], g.cost.flops / (2 * layer.batch * layer.in_features * layer.out_features)))
        )


def test_gains_are_differences_of_exact_volumes() -> None:
    rng = np.random.default_rng(0)
    low, high = np.log(LEAST), np.log(REFERENCE)
    points = low + (high - low) * rng.random((12, 3))
    volume, box = DominatedVolume(60_000), float(np.prod(high - low))
    for point in points[:8]:
        volume.add(point)
    before = hypervolume([tuple(p) for p in points[:8]], high) / box
    assert volume.share == pytest.approx(before, abs=2e-3)
    for point, gain in zip(points[8:], volume.gains(points[8:]), strict=True):
        exact = hypervolume([tuple(p) for p in (*points[:8], point)], high) / box - before
        assert gain == pytest.approx(exact, abs=2e-3)


def test_measurements_correct_predictions_of_equal_traits_most() -> None:
    layer = a_layer()
    drawn = draw(layer, "lowrank", SPACES["lowrank"]) + draw(layer, "pq", SPACES["pq"])
    residuals = Residuals()
    lowrank = [g for g in drawn if g.family == "lowrank"]
    for g in lowrank[:3]:
        residuals.add(g.traits, g.logs, (g.logs[0] + math.log(10), g.logs[1], g.logs[2] - math.log(2)))
    corrected = residuals.correct(drawn)
    moved = {g.hash: corrected[i, 0] - g.logs[0] for i, g in enumerate(drawn)}
    faster = {g.hash: corrected[i, 1] - g.logs[2] for i, g in enumerate(drawn)}
    assert moved[lowrank[0].hash] == pytest.approx(math.log(10), rel=0.1)
    assert faster[lowrank[0].hash] == pytest.approx(-math.log(2), rel=0.1)
    others = [moved[g.hash] for g in drawn if g.family == "pq"]
    assert max(others) < 0.5 * math.log(10)
    assert corrected[0, 2] < Residuals().correct(drawn)[0, 2], "what is measured is less uncertain"


@pytest.mark.slow
def test_predictions_find_more_than_a_random_search() -> None:
    layer = a_layer()
    spare = random.Random(1)
    off = {name: math.exp(spare.gauss(0, 1)) for name in ("dense", "int8", "lowrank", "stl", "kronecker", "pq")}
    judge = evaluate_by(lambda family, spec, error, latency: (error * off[family], latency / off[family] ** 0.3))

    def volume(sampler: str, seed: int) -> float:
        record = Record()
        bs.search(layer, tuple(SMALL), total=16, seed=seed, sampler=sampler, record=record, judge=judge)
        assert len(record) == 16
        points = [logarithms(e.objectives) for e in record if e.failure is None]
        return hypervolume(points, [math.log(r) for r in REFERENCE])

    seeds = range(5)
    assert sum(volume("auto", seed) for seed in seeds) > 1.15 * sum(volume("random", seed) for seed in seeds)


@pytest.mark.slow
def test_equal_seeds_and_measurements_give_equal_studies_and_other_seeds_others() -> None:
    layer = a_layer()
    judge = evaluate_by(lambda family, spec, error, latency: (2 * error, latency))

    def specs(seed: int, worker: int = 0) -> list[str]:
        seen: list[str] = []
        bs.search(
            layer, tuple(SMALL), total=12, seed=seed, worker=worker, judge=judge,
            watch=lambda e: seen.append(f"{e.candidate.hash} {e.stopped}"),
        )  # fmt: skip
        return seen

    assert specs(0) == specs(0)
    assert specs(0) != specs(1)
    assert specs(0) != specs(0, worker=1)


def test_the_front_of_a_similar_layer_is_tried_first() -> None:
    layer, like, unlike = a_layer("a"), a_layer("b", seed=1), a_layer("c", 96, 160, seed=2, decay=2.0)
    best = [found(like, "lowrank", bs.lowrank.Spec(rank), 0.5 / rank, 0.02 * rank) for rank in (4, 12)]
    worse = [found(like, "pq", bs.pq.Spec(4, "tree", "uint8"), 2.0, 5.0)]
    mine = shape(layer)
    assert similarity(layer, mine, best[0]) > 0.7
    far = [dataclasses.replace(e, layer_hash="far", spectrum=shape(unlike), kind="") for e in best]
    far = [dataclasses.replace(e, dense_cost=dataclasses.replace(e.dense_cost, parameters=10**6)) for e in far]
    assert similarity(layer, mine, far[0]) < 0.1
    proposed = []
    proposer = Proposer(layer, SearchSettings(SMALL), others=[*best, *worse])
    for _ in range(2):
        chosen = proposer.propose(tuple(SMALL), [])
        assert chosen is not None
        proposed.append(chosen.spec)
    assert set(proposed) == {bs.lowrank.Spec(4), bs.lowrank.Spec(12)}
    cold = [Proposer(layer, SearchSettings(SMALL), others=far).propose(tuple(SMALL), []) for _ in range(1)]
    without = Proposer(layer, SearchSettings(SMALL)).propose(tuple(SMALL), [])
    assert cold[0] is not None
    assert without is not None
    assert not set(proposed) <= {cold[0].spec, without.spec}


@pytest.mark.slow
def test_a_search_learns_from_the_run_s_other_layers_and_from_earlier_runs() -> None:
    judge = evaluate_by(lambda family, spec, error, latency: (error * (30 if family == "pq" else 1), latency))
    earlier = Record()
    bs.search(a_layer("a"), tuple(SMALL), total=12, record=earlier, judge=judge)
    assert all(e.spectrum and "forecast" in e.rungs for e in earlier)
    layer = a_layer("b", seed=1)

    def first(**known: Any) -> set[Any]:
        seen: list[Any] = []
        bs.search(layer, tuple(SMALL), total=3, seed=5, judge=judge, watch=lambda e: seen.append(e.candidate), **known)
        return {c.spec for c in seen}

    good = {e.candidate.spec for e in ParetoFront.of(earlier).evaluations}
    assert first(warm=list(earlier)) <= good
    assert first(record=earlier) <= good, "the layers of one run learn from each other"
    assert not first() <= good


def test_limits_keep_specs_from_being_fitted_and_from_the_front() -> None:
    layer, record, fitted = a_layer(), Record(), []
    judge = evaluate_by(lambda family, spec, error, latency: (error, latency))

    def counting(layer: Layer, family: str, spec: Any, **options: Any) -> Evaluation:
        fitted.append(spec)
        return judge(layer, family, spec, **options)

    bounds = {"flops": 0.4, "bytes": 0.9, "latency": 0.3}
    front = bs.search(layer, ("dense", "lowrank"), 8, record=record, judge=counting, limits=bounds)
    assert front.evaluations
    for e in front.evaluations:
        assert e.flops_ratio <= 0.4
        assert e.latency_ratio <= 0.3
        assert e.cost.bytes <= 0.9 * e.dense_cost.bytes
    beyond = [e for e in record if e.flops_ratio > 0.4 or e.cost.bytes > 0.9 * e.dense_cost.bytes]
    assert beyond, "dense itself is beyond"
    assert all(e.stopped == "forecast" and "beyond a limit" in (e.failure or "") for e in beyond)
    assert not {e.candidate.spec for e in beyond} & set(fitted)


def test_limits_are_constraints_of_optuna_s_trials(tmp_path: Any) -> None:
    layer = a_layer()
    judge = evaluate_by(lambda family, spec, error, latency: (error, latency))
    storage = tmp_path / "journal"
    bs.search(layer, ("lowrank",), 6, storage=storage, judge=judge, limits={"flops": 0.3}, sampler="nsga2")
    study = optuna.load_study(
        study_name="fc/lowrank",
        storage=optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(storage))),
    )
    constraints_of_ranks = [(t.constraints["flops"], t.params["rank"]) for t in study.trials]
    highest = 0.3 * 64 * 48 / (64 + 48)
    assert {value > 0 for value, _ in constraints_of_ranks} == {False, True}
    assert all((value > 0) == (rank > highest) for value, rank in constraints_of_ranks)


@pytest.mark.parametrize(("limit", "message"), [({"flop": 0.5}, "did you mean 'flops'"), ({"flops": 0}, "above 0")])
def test_bad_limits_are_refused(limit: dict[str, float], message: str) -> None:
    with pytest.raises(bs.BadInput, match=message):
        bs.search(a_layer(), ("lowrank",), 2, limits=limit)


def test_a_total_is_shared_by_the_families_and_ends_when_spaces_are_exhausted() -> None:
    layer, record = a_layer(), Record()
    judge = evaluate_by(lambda family, spec, error, latency: (error, latency))
    bs.search(layer, ("dense", "lowrank"), total=40, record=record, judge=judge)
    assert len({e.candidate.hash for e in record}) == len(record) < 40
    assert {e.candidate.family for e in record} == {"dense", "lowrank"}
    with pytest.raises(bs.BadInput, match="total is 0"):
        bs.search(layer, ("dense",), total=0)


def test_samplers_follow_the_rule() -> None:
    narrow, wide = a_layer(), a_layer(out=512, features=512)

    def chosen(layer: Layer, family: str, trials: int) -> str:
        return samplers.choose("auto", layer, family, SPACES[family], trials)

    assert chosen(narrow, "kronecker", 50) == "tpe"
    assert chosen(narrow, "pq", 50) == "tpe"
    assert chosen(narrow, "lowrank", 50) == "tpe", "11 ranks are no continuum"
    assert samplers.choose("auto", wide, "lowrank", bs.lowrank.Space(step=1), 50) == "gp"
    assert samplers.choose("auto", wide, "lowrank", bs.lowrank.Space(step=1), 300) == "tpe"
    assert chosen(wide, "pq", 1000) == "nsga2"
    assert samplers.choose("random", narrow, "pq", SPACES["pq"], 1000) == "random"
    with pytest.raises(bs.BadInput, match="no sampler 'nsga'; did you mean 'nsga2'"):
        bs.search(narrow, ("lowrank",), 2, sampler="nsga")


@pytest.mark.parametrize("name", ["tpe", pytest.param("gp", marks=pytest.mark.slow), "nsga2", "random"])
def test_every_sampler_can_be_chosen_by_name(name: str) -> None:
    record = Record()
    judge = evaluate_by(lambda family, spec, error, latency: (error, latency))
    bs.search(a_layer(), ("lowrank",), 6, record=record, judge=judge, sampler=name)
    assert len(record) == 6
    assert not [e for e in record if e.stopped], "a sampler by name stops nothing early"


def test_limits_name_quantities_of_evaluations() -> None:
    e = found(a_layer(), "lowrank", bs.lowrank.Spec(8), 0.1, 0.2)
    ratio = e.flops_ratio
    assert constraints.excess_of({"flops": 0.1, "error": 0.2, "latency": 0.1}, e) == pytest.approx(
        {"flops": ratio - 0.1, "error": -0.1, "latency": 0.1}
    )
    assert not constraints.kept({"latency": 0.1}, e)
    assert constraints.kept({"latency": 0.2}, e)


def test_the_surrogate_learns_each_evaluation_once() -> None:
    layer = a_layer()
    surrogate = Surrogate(layer, draw(layer, "lowrank", SPACES["lowrank"]))
    e = found(layer, "lowrank", bs.lowrank.Spec(8), 0.1, 0.2)
    surrogate.learn([e, e])
    surrogate.learn([e])
    assert len(surrogate.residuals.errors) == 1
