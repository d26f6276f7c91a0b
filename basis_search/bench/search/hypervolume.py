"""Guided search against random search and NSGA-II: logarithmic hypervolume by trials and by seconds.

V = volume dominated in (log error, log FLOPs ratio, log latency ratio), as a share of the box `LEAST` to `REFERENCE`.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
import math
import statistics
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from basis_search.bench.search.evaluation_table import DIGITS, EvaluationTable, layers
from basis_search.bench.search.replay import (
    LARGE,
    ReplayedTrial,
    guided,
    plain,
    volumes,
)
from basis_search.evaluation.candidate import Evaluation
from basis_search.evaluation.pareto import ParetoFront
from basis_search.files import append_line, new_lines
from basis_search.layers.layer import Layer

FOLDER = Path("runs/search-table")
TRIALS = (10, 25, 50, 100)
SEEDS = {10: 10, 25: 10, 50: 10, 100: 10}
SEEDS_LARGE = {10: 3, 25: 3, 50: 3, 100: 0}
"""Number of studies by their length: on the digits layers, and on large ones, whose candidates take seconds."""
Key = tuple[str, str, int]
METHODS = ("random", "nsga2", "guided, cold", "guided")


def seeds_of(layer: Layer) -> Mapping[int, int]:
    """Number of studies by their length."""
    return SEEDS_LARGE if layer.in_features * layer.out_features > LARGE else SEEDS


def wanted(layer: Layer, seed: int) -> int:
    """Number of trials of the study of a layer with a seed."""
    return max((trials for trials, seeds in seeds_of(layer).items() if seed < seeds), default=0)


def studies(
    table: EvaluationTable, chosen: Sequence[Layer], seed: int
) -> Iterator[tuple[str, str, list[ReplayedTrial]]]:
    """All methods on all layers with one seed; "guided" is given the evaluations of earlier layers, "cold" is not."""
    warm: list[Evaluation] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for layer in chosen:
            if trials := wanted(layer, seed):
                for method in ("random", "nsga2"):
                    yield layer.name, method, plain(table, layer, method, trials, seed)
                yield layer.name, "guided, cold", guided(table, layer, trials, seed, ())
                steps = guided(table, layer, trials, seed, warm)
                yield layer.name, "guided", steps
                warm += [step.evaluation for step in steps]


@dataclasses.dataclass
class Course:
    """V, seconds and trials after each new spec of a study; linear volumes after TRIALS; number stopped per stage."""

    volumes: list[float]
    seconds: list[float]
    trials: list[int]
    linear: dict[str, float]
    stopped: dict[str, int]

    @classmethod
    def of(cls, steps: Sequence[ReplayedTrial]) -> Course:
        linear = {
            str(n): ParetoFront.of(step.evaluation for step in steps if step.trials <= n).hypervolume() for n in TRIALS
        }
        stopped = Counter(step.evaluation.stopped or "none" for step in steps)
        return cls(volumes(steps), [s.seconds for s in steps], [s.trials for s in steps], linear, dict(stopped))

    def at(self, trials: int, distinct: bool = False) -> tuple[float, float]:
        """V and seconds after `trials` trials, or after as many distinct specs."""
        last = min(trials, len(self.trials)) - 1 if distinct else bisect.bisect_right(self.trials, trials) - 1
        return self.volumes[last], self.seconds[last]

    def seconds_to(self, volume: float) -> float:
        """Seconds until V reached `volume`; infinite if it never did."""
        return next((s for v, s in zip(self.volumes, self.seconds, strict=True) if v >= volume), math.inf)


def replayed(folder: Path, table: EvaluationTable, chosen: Sequence[Layer], seeds: Iterable[int]) -> dict[Key, Course]:
    """The courses of all studies by layer, method and seed; those complete in folder/courses.jsonl are not replayed."""
    path, found = folder / "courses.jsonl", dict[Key, Course]()
    for line in new_lines(path)[0]:
        data = json.loads(line)
        found[data["layer"], data["method"], data["seed"]] = Course(**data["course"])
    for seed in seeds:
        if not all(
            (course := found.get((layer.name, method, seed))) is not None and course.trials[-1] >= wanted(layer, seed)
            for layer in chosen
            for method in METHODS
            if wanted(layer, seed)
        ):
            for name, method, steps in studies(table, chosen, seed):
                course = found[name, method, seed] = Course.of(steps)
                entry = {"layer": name, "method": method, "seed": seed, "course": dataclasses.asdict(course)}
                append_line(path, json.dumps(entry).encode() + b"\n")
    return found


def hypervolume_table(device: str, threads: int) -> list[dict[str, Any]]:
    """Means over seeds per layer and number of trials; ratios are of one seed each, then averaged.

    Evaluations and studies are stored in runs/search-table; remove that folder to measure anew, its courses.jsonl to
    replay anew.
    """
    table, chosen = EvaluationTable(FOLDER / "table.jsonl"), layers(FOLDER)
    courses = replayed(FOLDER, table, chosen, range(max(SEEDS.values())))
    best = {layer.name: volumes([ReplayedTrial(e, 0.0, 0) for e in table.of(layer)])[-1] for layer in chosen}
    return rows_of(courses, best, [layer.name for layer in chosen])


def rows_of(courses: Mapping[Key, Course], best: Mapping[str, float], names: Sequence[str]) -> list[dict[str, Any]]:
    """Rows per layer, for all digits layers and for all others, over the seeds that every method has."""

    def seeds(group: Sequence[str], trials: int) -> list[int]:
        return [
            seed
            for seed in range(max(SEEDS.values()))
            if all((c := courses.get((n, m, seed))) and c.trials[-1] >= trials for n in group for m in METHODS)
        ]

    rows = []
    for group in (*([name] for name in names), list(DIGITS), [name for name in names if name not in DIGITS]):
        for trials in TRIALS:
            some = {(n, m): [courses[n, m, seed] for seed in seeds(group, trials)] for n in group for m in METHODS}
            if all(some.values()):
                rows.append(_row(some, best, group, trials))
    stopped = sum((Counter(c.stopped) for (_, method, _), c in courses.items() if method == "guided"), Counter[str]())
    return [*rows, {"case": "guided trials by the stage that stopped them", **stopped}]


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

    linear = {m: statistics.fmean(c.linear[str(trials)] for n in names for c in courses[n, m]) for m in METHODS}
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
