"""Guided search against random search and NSGA-II: logarithmic hypervolume by trials and by seconds, on stored costs.

V = volume dominated in (log error, log FLOPs ratio, log latency ratio), as a share of the box `LEAST` to `REFERENCE`.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from basis_search.bench.search_table import DIGITS, Table, layers, seed_of
from basis_search.draws import LEAST, logarithms
from basis_search.evaluate import Candidate, Evaluation, failed
from basis_search.families import FAMILIES, kronecker, stl
from basis_search.families import family as family_named
from basis_search.forecasts import REFERENCE
from basis_search.layer import Layer
from basis_search.pareto import ParetoFront, hypervolume
from basis_search.record import Record
from basis_search.study import quiet, search
from basis_search.timing import fingerprint
from basis_search.version import code_version

FOLDER = Path("runs/search-table")
TRIALS, LARGE = (10, 25, 50, 100), 10**6
SEEDS = {10: 10, 25: 10, 50: 10, 100: 3}
"""How many studies of each length: on the digits layers, and of those on LARGE ones, whose candidates take seconds."""
SEEDS_LARGE = {10: 3, 25: 3, 50: 3, 100: 0}
METHODS = ("random", "nsga2", "guided, cold", "guided")


@dataclasses.dataclass(frozen=True)
class Step:
    """A new spec, and the seconds and the trials, repeats among them, that its study had taken when it was done."""

    evaluation: Evaluation
    seconds: float
    trials: int


class Stopwatch:
    """Seconds of a study: its proposals by this process's clock, its evaluations as the table has them."""

    def __init__(self) -> None:
        self.stored = 0.0
        self._start, self._apart = time.process_time(), 0.0

    def replay(self, table: Table, layer: Layer, family: str, spec: Any, most_error: float = math.inf) -> Evaluation:
        """A stored evaluation, stopped where evaluate() would have stopped it, charged with what it took."""
        before = time.process_time()
        entry = table(layer, family, spec)
        e = dataclasses.replace(
            entry.evaluation,
            candidate=Candidate(layer.name, family, spec),
            layer_hash=layer.content_hash,
            device=fingerprint(layer.device, 1),
            code=code_version(),
        )
        self.stored += entry.seconds["fit"]
        if e.failure is None and e.error > most_error:
            # The error takes less than the gate, of which it is the first part.
            gate, clock = e.seconds["gate"], e.seconds["clock"]
            self.stored += entry.seconds["kernel"] * gate / (gate + clock)
            reason = f"its error of {e.error:.3g} after the fit is above {most_error:.3g}, where it is dominated"
            e = failed(layer, e.candidate, reason, stopped="fit", rungs={"fit": e.error})
        else:
            self.stored += entry.seconds["kernel"]
        self._apart += time.process_time() - before
        return e

    @property
    def seconds(self) -> float:
        return self.stored + time.process_time() - self._start - self._apart


def spaces_of(layer: Layer) -> dict[str, Any]:
    """The default, but for ternary tiles, which came after the table was begun; on large layers what fits soon.

    There a fit of 4 x 4 tiles beside a waist takes a quarter of a minute.
    """
    spaces = {name: module.Space() for name, module in FAMILIES.items()}
    spaces["stl"] = stl.Space(ternary=())
    if layer.in_features * layer.out_features > LARGE:
        spaces["stl"] = stl.Space(tiles=(2,), ternary=())
        spaces["kronecker"] = kronecker.Space(max_choices=8, density_levels=4)
    return spaces


def plain(table: Table, layer: Layer, method: str, trials: int, seed: int) -> list[Step]:
    """A study over all families with one of optuna's samplers, until `trials` specs are distinct.

    A repeat is a trial that costs its proposal alone. NSGA-II's first population, drawn uniformly, is that of random.
    """
    quiet()
    spaces = spaces_of(layer)
    sampler: optuna.samplers.BaseSampler
    sampler = optuna.samplers.RandomSampler(seed=seed_of("random", seed, layer.name))
    study = optuna.create_study(directions=["minimize"] * 3, sampler=sampler)
    watch, steps, seen = Stopwatch(), list[Step](), set[str]()
    while len(steps) < trials:
        if method == "nsga2" and len(study.trials) == 50:
            study.sampler = optuna.samplers.NSGAIISampler(seed=seed_of("nsga2", seed, layer.name))
        trial = study.ask()
        family = trial.suggest_categorical("family", list(FAMILIES))
        spec = family_named(family).suggest(trial, layer, spaces[family])
        candidate = Candidate(layer.name, family, spec)
        if candidate.hash in seen:
            e = next(s.evaluation for s in steps if s.evaluation.candidate.hash == candidate.hash)
        else:
            e = watch.replay(table, layer, family, spec)
        study.tell(trial, [min(value, 1e6) for value in e.objectives])
        if candidate.hash not in seen:
            seen.add(candidate.hash)
            steps.append(Step(e, watch.seconds, len(study.trials)))
    return steps


class Noting(Record):
    """A record that notes how many trials each study has had."""

    def __init__(self) -> None:
        self.trials: dict[str, int] = {}
        super().__init__()

    def add(self, evaluation: Evaluation, **facts: Any) -> bool:
        self.trials[evaluation.candidate.family] = facts["trial"] + 1
        return super().add(evaluation, **facts)


def guided(table: Table, layer: Layer, trials: int, seed: int, warm: Sequence[Evaluation]) -> list[Step]:
    """search() itself, with stored evaluations; the stopped are trials like the others."""
    watch, steps, record = Stopwatch(), list[Step](), Noting()

    def judge(
        layer: Layer,
        family: str,
        spec: Any,
        *,
        threads: int,
        twin: Evaluation | None = None,
        most_error: float = math.inf,
    ) -> Evaluation:
        return watch.replay(table, layer, family, spec, most_error)

    search(
        layer,
        total=trials,
        seed=seed_of("guided", seed, layer.name),
        spaces=spaces_of(layer),
        record=record,
        judge=judge,
        watch=lambda e: steps.append(Step(e, watch.seconds, sum(record.trials.values()))),
        warm=warm,
    )
    return steps


def volumes(steps: Sequence[Step]) -> list[float]:
    """V after each trial."""
    box = float(np.prod(np.log(REFERENCE) - np.log(LEAST)))
    reference = [math.log(value) for value in REFERENCE]
    found: list[float] = []
    front: list[tuple[float, ...]] = []
    for step in steps:
        if step.evaluation.failure is None:
            point = logarithms(step.evaluation.objectives)
            if not any(all(a <= b for a, b in zip(old, point, strict=True)) for old in front):
                front = [old for old in front if not all(a <= b for a, b in zip(point, old, strict=True))]
                front.append(point)
        found.append(hypervolume(front, reference) / box)
    return found


def seeds_of(layer: Layer) -> Mapping[int, int]:
    """How many studies by their length."""
    return SEEDS_LARGE if layer.in_features * layer.out_features > LARGE else SEEDS


def studies(table: Table, chosen: Sequence[Layer], seed: int) -> dict[tuple[str, str], list[Step]]:
    """All methods on all layers with one seed; "guided" learns from the layers before, "guided, cold" does not."""
    found: dict[tuple[str, str], list[Step]] = {}
    warm: list[Evaluation] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for layer in chosen:
            trials = max((n for n, seeds in seeds_of(layer).items() if seed < seeds), default=0)
            if not trials:
                continue
            for method in ("random", "nsga2"):
                found[layer.name, method] = plain(table, layer, method, trials, seed)
            found[layer.name, "guided, cold"] = guided(table, layer, trials, seed, ())
            found[layer.name, "guided"] = guided(table, layer, trials, seed, warm)
            warm += [step.evaluation for step in found[layer.name, "guided"]]
    return found


@dataclasses.dataclass
class Course:
    """V, seconds and trials after each new spec of one study, and the linear volume after each of TRIALS."""

    volumes: list[float]
    seconds: list[float]
    trials: list[int]
    linear: dict[int, float]

    @classmethod
    def of(cls, steps: Sequence[Step]) -> Course:
        linear = {
            n: ParetoFront.of(step.evaluation for step in steps if step.trials <= n).hypervolume() for n in TRIALS
        }
        return cls(volumes(steps), [s.seconds for s in steps], [s.trials for s in steps], linear)

    def at(self, trials: int, distinct: bool = False) -> tuple[float, float]:
        """V and seconds after so many trials, or so many distinct specs."""
        last = min(trials, len(self.trials)) - 1 if distinct else bisect.bisect_right(self.trials, trials) - 1
        return self.volumes[last], self.seconds[last]

    def seconds_to(self, volume: float) -> float:
        """When V was first that large; infinite if it never was."""
        return next((s for v, s in zip(self.volumes, self.seconds, strict=True) if v >= volume), math.inf)


def hypervolume_table(device: str, threads: int) -> list[dict[str, Any]]:
    """Means over seeds per layer and number of trials; ratios are of one seed each, then averaged."""
    quiet()
    table, chosen = Table(FOLDER / "table.jsonl"), layers(FOLDER)
    courses: dict[tuple[str, str], list[Course]] = {}
    stopped: Counter[str] = Counter()
    for seed in range(max(SEEDS.values())):
        for (name, method), steps in studies(table, chosen, seed).items():
            courses.setdefault((name, method), []).append(Course.of(steps))
            if method == "guided":
                stopped.update(step.evaluation.stopped or "none" for step in steps)
    best = {layer.name: volumes([Step(e, 0.0, 0) for e in table.of(layer)])[-1] for layer in chosen}
    spectra = [layer.name for layer in chosen if layer.name not in DIGITS]
    groups = [*([layer.name] for layer in chosen), list(DIGITS), spectra]
    seeds = {layer.name: seeds_of(layer) for layer in chosen}
    rows = []
    for group in groups:
        for trials in (n for n in TRIALS if seeds[group[0]][n]):
            some = {key: found[: seeds[key[0]][trials]] for key, found in courses.items() if key[0] in group}
            rows.append(_row(some, best, group, trials))
    return [*rows, {"case": "guided trials by the rung that stopped them", **stopped}]


def _row(
    courses: Mapping[tuple[str, str], Sequence[Course]], best: Mapping[str, float], names: Sequence[str], trials: int
) -> dict[str, Any]:
    def each(method: str, distinct: bool = False) -> list[tuple[float, float]]:
        return [course.at(trials, distinct) for name in names for course in courses[name, method]]

    def mean(values: Iterable[tuple[float, float]], place: int = 0) -> float:
        return statistics.fmean(value[place] for value in values)

    def over(method: str, other: str, distinct: bool = False) -> list[float]:
        return [a / b for (a, _), (b, _) in zip(each(method), each(other, distinct), strict=True)]

    def times(method: str, distinct: bool = False) -> list[float]:
        studied = [course for name in names for course in courses[name, method]]
        return [c.seconds_to(v) / s for c, (v, s) in zip(studied, each("random", distinct), strict=True)]

    linear = {m: statistics.fmean(c.linear[trials] for n in names for c in courses[n, m]) for m in METHODS}
    ratios = over("guided", "random")
    return {
        "case": names[0] if len(names) == 1 else f"{len(names)} layers",
        "trials": trials,
        "seeds": len(courses[names[0], "random"]),
        **{f"V {method}": mean(each(method)) for method in METHODS},
        "V random, distinct": mean(each("random", True)),
        "V known": statistics.fmean(best[name] for name in names),
        "guided / random": statistics.fmean(ratios),
        "least": min(ratios),
        "/ random, distinct": statistics.fmean(over("guided", "random", True)),
        "/ nsga2": statistics.fmean(over("guided", "nsga2")),
        "cold / random": statistics.fmean(over("guided, cold", "random")),
        "time to random's V": statistics.median(times("guided")),
        "most": max(times("guided")),
        "distinct, time": statistics.median(times("guided", True)),
        "seconds random": mean(each("random"), 1),
        "seconds guided": mean(each("guided"), 1),
        "linear random": linear["random"],
        "linear guided": linear["guided"],
    }
