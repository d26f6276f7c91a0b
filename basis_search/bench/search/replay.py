"""Studies replayed on stored evaluations: proposals are made and timed, evaluations are read from a table."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna

from basis_search.bench.search.evaluation_table import EvaluationTable, seed_of
from basis_search.evaluation.candidate import Candidate, Evaluation, failed
from basis_search.evaluation.code_version import code_version
from basis_search.evaluation.pareto import hypervolume
from basis_search.evaluation.timing import fingerprint
from basis_search.families import FAMILIES, kronecker, stl
from basis_search.families import family as family_named
from basis_search.layers.layer import Layer
from basis_search.study.optuna_study import quiet
from basis_search.study.proposals import LEAST, accepts, logarithms
from basis_search.study.search import search
from basis_search.study.surrogate import REFERENCE
from basis_search.workers.evaluation_log import Record

LARGE = 10**6
"""Layers of more weights are large: their candidates take seconds."""


@dataclasses.dataclass(frozen=True)
class ReplayedTrial:
    """A new evaluation of a study.

    Attributes:
        evaluation: from the table.
        seconds: CPU seconds of the study so far.
        trials: trials of the study so far, repeats included.
        stored: the part of `seconds` that is from the table; the rest was spent on proposals.
    """

    evaluation: Evaluation
    seconds: float
    trials: int
    stored: float = 0.0


class Stopwatch:
    """CPU seconds of a study: proposals as measured, evaluations as stored in the table."""

    def __init__(self) -> None:
        self.stored = 0.0
        self._start, self._apart = time.process_time(), 0.0

    def replay(
        self, table: EvaluationTable, layer: Layer, family: str, spec: Any, most_error: float = math.inf
    ) -> Evaluation:
        """A stored evaluation and its seconds, cut off where evaluate() would have stopped it."""
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
        if e.failure is None and e.searched_error > most_error:
            # The error is computed at the start of the check, so this overestimates its cost.
            gate, clock = e.seconds["gate"], e.seconds["clock"]
            self.stored += entry.seconds["kernel"] * gate / (gate + clock)
            reason = (
                f"its error of {e.searched_error:.3g} after the fit is above {most_error:.3g}, where it is dominated"
            )
            e = failed(layer, e.candidate, reason, stopped="fit", rungs={"fit": e.searched_error})
        else:
            self.stored += entry.seconds["kernel"]
        self._apart += time.process_time() - before
        return e

    @property
    def seconds(self) -> float:
        return self.stored + time.process_time() - self._start - self._apart


def spaces_of(layer: Layer) -> dict[str, Any]:
    """Default spaces of the families that have specs for the layer, without ternary tiles; for large layers smaller.

    There a fit of 4 x 4 tiles with a low-rank part takes a quarter of a minute.
    """
    spaces = {name: module.Space() for name, module in FAMILIES.items() if accepts(layer, name, module.Space())}
    spaces["stl"] = stl.Space(ternary=())
    if layer.in_features * layer.out_features > LARGE:
        spaces["stl"] = stl.Space(tiles=(2,), ternary=())
        spaces["kronecker"] = kronecker.Space(max_choices=8, density_levels=4)
    return spaces


@quiet()
def plain(table: EvaluationTable, layer: Layer, method: str, trials: int, seed: int) -> list[ReplayedTrial]:
    """A study over all families with optuna's "random" or "nsga2", until `trials` specs are distinct.

    A repeat is a trial that costs its proposal alone. NSGA-II's first population is the first 50 trials of "random".
    """
    spaces = spaces_of(layer)
    sampler: optuna.samplers.BaseSampler
    sampler = optuna.samplers.RandomSampler(seed=seed_of("random", seed, layer.name))
    study = optuna.create_study(directions=["minimize"] * 3, sampler=sampler)
    watch, steps, seen = Stopwatch(), list[ReplayedTrial](), set[str]()
    while len(steps) < trials:
        if method == "nsga2" and len(study.trials) == 50:
            study.sampler = optuna.samplers.NSGAIISampler(seed=seed_of("nsga2", seed, layer.name))
        trial = study.ask()
        family = trial.suggest_categorical("family", list(spaces))
        spec = family_named(family).suggest(trial, layer, spaces[family])
        candidate = Candidate(layer.name, family, spec)
        if candidate.hash in seen:
            e = next(s.evaluation for s in steps if s.evaluation.candidate.hash == candidate.hash)
        else:
            e = watch.replay(table, layer, family, spec)
        study.tell(trial, [min(value, 1e6) for value in e.objectives])
        if candidate.hash not in seen:
            seen.add(candidate.hash)
            steps.append(ReplayedTrial(e, watch.seconds, len(study.trials), watch.stored))
    return steps


class TrialCount(Record):
    """An evaluation log that also counts the trials of each study."""

    def __init__(self) -> None:
        self.trials: dict[str, int] = {}
        super().__init__()

    def add(self, evaluation: Evaluation, **facts: Any) -> bool:
        self.trials[evaluation.candidate.family] = facts["trial"] + 1
        return super().add(evaluation, **facts)


def guided(
    table: EvaluationTable, layer: Layer, trials: int, seed: int, warm: Sequence[Evaluation]
) -> list[ReplayedTrial]:
    """search() on stored evaluations; stopped candidates count as trials."""
    watch, steps, record = Stopwatch(), list[ReplayedTrial](), TrialCount()

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
        watch=lambda e: steps.append(ReplayedTrial(e, watch.seconds, sum(record.trials.values()), watch.stored)),
        warm=warm,
    )
    return steps


def volumes(steps: Sequence[ReplayedTrial]) -> list[float]:
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
