"""optuna's own samplers against this package's guided proposals, on stored evaluations of six digits layers.

A trial is a distinct candidate evaluated; a repeat costs its proposal. V is the volume of `hypervolume`.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
import statistics
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import optuna

from basis_search.bench.search.evaluation_table import DIGITS, EvaluationTable, digits_layers, seed_of
from basis_search.bench.search.hypervolume import FOLDER
from basis_search.bench.search.replay import ReplayedTrial, Stopwatch, guided, plain, spaces_of, volumes
from basis_search.bench.stored_results import StoredResults
from basis_search.evaluation.candidate import Candidate, Evaluation
from basis_search.evaluation.pareto import ParetoFront
from basis_search.families import family as family_named
from basis_search.layers.layer import Layer
from basis_search.study.optuna_study import quiet
from basis_search.study.proposals import Proposal, draw_pool, logarithms
from basis_search.study.surrogate import Surrogate

SEEDS, TRIALS = range(10), (25, 50, 100)
REACHED = 50
"""Number of trials of random search whose V is the target of "trials" and "seconds"."""
FORECASTS = 25
"""Number of candidates enqueued for the samplers "+forecasts"."""
REPEATS_UNTIL_RANDOM, REPEATS_UNTIL_EXHAUSTED = 4, 40
"""Repeats in a row after which proposals are drawn uniformly, and the study counts as exhausted; as in `search`."""
WORST = 10.0
"""Upper bound of the objectives that a sampler is given, before the logarithm; failed evaluations have it."""

Maker = Callable[[int], optuna.samplers.BaseSampler]
Curves = Mapping[str, Sequence[float]]
Group = tuple[str, ...]
"""Families that share a study."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to propose with optuna.

    Attributes:
        sampler: makes one from a seed.
        shared: one study over all families and their specs, instead of one per family.
        forecasts: number of candidates enqueued first, see `ranked_by_forecast`.
        trials: length of a study.
    """

    sampler: Maker
    shared: bool = True
    forecasts: int = 0
    trials: int = TRIALS[-1]


def tpe(seed: int) -> optuna.samplers.BaseSampler:
    """TPE over groups of parameters that occur together."""
    return optuna.samplers.TPESampler(
        multivariate=True,
        group=True,
        constant_liar=True,
        n_startup_trials=10,
        seed=seed,
        warn_independent_sampling=False,
    )


def gaussian_process(seed: int) -> optuna.samplers.BaseSampler:
    """A Gaussian process per objective; of a conditional space it models the parameters that all trials have."""
    return optuna.samplers.GPSampler(
        seed=seed, n_startup_trials=4, deterministic_objective=True, warn_independent_sampling=False
    )


METHODS = {
    "tpe": Method(tpe),
    "tpe+forecasts": Method(tpe, forecasts=FORECASTS),
    "tpe by family": Method(tpe, shared=False),
    "tpe by family+forecasts": Method(tpe, shared=False, forecasts=FORECASTS),
    "gp": Method(gaussian_process, shared=False, trials=50),
    "gp+forecasts": Method(gaussian_process, shared=False, forecasts=FORECASTS, trials=50),
}
SAMPLERS = ("random", "nsga2", *METHODS, "guided")


def ranked_by_forecast(layer: Layer, spaces: Mapping[str, Any], count: int, seed: int) -> list[Proposal]:
    """Candidates chosen greedily, by the volume that their predictions add to those already chosen."""
    surrogate = Surrogate(layer, draw_pool(layer, spaces, seed=(seed,)), (seed,))
    chosen: list[Proposal] = []
    while len(chosen) < count and (best := surrogate.best({p.hash for p in chosen})) is not None:
        chosen.append(best[0])
        surrogate.volume.add(best[0].logs)
    return chosen


class Studies:
    """optuna studies of one layer: one of all families, or one of each."""

    def __init__(self, layer: Layer, method: Method, seed: int):
        self.layer, self.spaces = layer, spaces_of(layer)
        self.groups: list[Group] = [tuple(self.spaces)] if method.shared else [(name,) for name in self.spaces]
        self._seed = seed
        self._samplers = {group: method.sampler(seed_of("samplers", seed, layer.name, group)) for group in self.groups}
        self._studies = {
            group: optuna.create_study(directions=["minimize"] * 3, sampler=self._samplers[group])
            for group in self.groups
        }
        self._repeats = dict.fromkeys(self.groups, 0)
        self._tried = dict.fromkeys(self.groups, 0)

    def ask(self, known: Iterable[Evaluation], proposal: Proposal | None) -> tuple[Group, optuna.Trial, Candidate]:
        """The next trial: of a proposal if there is one, else of the group whose trials are most often on the front."""
        if proposal is None:
            group = self._turn(known)
            sampler = self._samplers[group]
            if self._repeats[group] >= REPEATS_UNTIL_RANDOM:
                sampler = optuna.samplers.RandomSampler(seed=seed_of("stale", self._seed, self._tried[group]))
        else:
            group = next(g for g in self.groups if proposal.family in g)
            sampler = self._samplers[group]
            self._studies[group].enqueue_trial({"family": proposal.family, **proposal.params})
        study = self._studies[group]
        study.sampler = sampler
        trial = study.ask()
        family = trial.suggest_categorical("family", list(group))
        spec = family_named(family).suggest(trial, self.layer, self.spaces[family])
        return group, trial, Candidate(self.layer.name, family, spec)

    def tell(self, group: Group, trial: optuna.Trial, evaluation: Evaluation, repeated: bool) -> None:
        self._tried[group] += 1
        self._repeats[group] = self._repeats[group] + 1 if repeated else 0
        if len(group) == len(trial.params) == 1:
            self._repeats[group] = REPEATS_UNTIL_EXHAUSTED  # the family's only spec
        self._studies[group].tell(trial, logarithms([min(value, WORST) for value in evaluation.objectives]))

    @property
    def exhausted(self) -> bool:
        return all(self._repeats[group] >= REPEATS_UNTIL_EXHAUSTED for group in self.groups)

    def _turn(self, known: Iterable[Evaluation]) -> Group:
        front = ParetoFront.of(known).evaluations
        left = [group for group in self.groups if self._repeats[group] < REPEATS_UNTIL_EXHAUSTED]
        return max(left, key=lambda g: (1 + sum(e.candidate.family in g for e in front)) / (1 + self._tried[g]))


@quiet()
def sampled(table: EvaluationTable, layer: Layer, method: Method, trials: int, seed: int) -> list[ReplayedTrial]:
    """Studies with one of optuna's samplers, until `trials` candidates are evaluated."""
    watch, steps, found = Stopwatch(), list[ReplayedTrial](), dict[str, Evaluation]()
    first = ranked_by_forecast(layer, spaces_of(layer), method.forecasts, seed) if method.forecasts else []
    studies, asked = Studies(layer, method, seed), 0
    while len(steps) < trials and not studies.exhausted:
        group, trial, candidate = studies.ask(found.values(), first.pop(0) if first else None)
        asked += 1
        repeated = candidate.hash in found
        if not repeated:
            found[candidate.hash] = watch.replay(table, layer, candidate.family, candidate.spec)
        studies.tell(group, trial, found[candidate.hash], repeated)
        if not repeated:
            steps.append(ReplayedTrial(found[candidate.hash], watch.seconds, asked, watch.stored))
    return steps


def study(table: EvaluationTable, layer: Layer, sampler: str, trials: int, seed: int) -> list[ReplayedTrial]:
    """The study of a layer with one of SAMPLERS."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if sampler == "guided":
            return guided(table, layer, trials, seed, ())
        if sampler in METHODS:
            return sampled(table, layer, METHODS[sampler], trials, seed)
        return plain(table, layer, sampler, trials, seed)


def curves(steps: Sequence[ReplayedTrial]) -> Curves:
    """V, seconds, and the seconds of those spent on proposals, after each trial."""
    return {
        "volumes": [round(v, 6) for v in volumes(steps)],
        "seconds": [round(s.seconds, 4) for s in steps],
        "proposing": [round(s.seconds - s.stored, 4) for s in steps],
    }


def sampler_table(device: str, threads: int) -> list[dict[str, Any]]:
    """Per layer and for all layers: V of each sampler over random's after 25, 50 and 100 trials.

    Studies are stored in runs/search-table/samplers.json as they finish; remove it to replay anew.
    """
    table, layers = EvaluationTable(FOLDER / "table.jsonl"), digits_layers(FOLDER, DIGITS)
    stored = StoredResults(FOLDER / "samplers.json")
    for seed, layer, sampler in itertools.product(SEEDS, layers, SAMPLERS):
        replay = partial(_curves_of_study, table, layer, sampler, seed)
        stored.of(f"{layer.name}, {sampler}, {seed}", replay)
    return rows_of(stored.known, DIGITS)


def _curves_of_study(table: EvaluationTable, layer: Layer, sampler: str, seed: int) -> Curves:
    trials = METHODS[sampler].trials if sampler in METHODS else TRIALS[-1]
    return curves(study(table, layer, sampler, trials, seed))


def rows_of(studies: Mapping[str, Curves], names: Sequence[str]) -> list[dict[str, Any]]:
    """Per layer and sampler, and for the mean of the layers: medians over seeds with interquartile ranges.

    "V at n": volume over the median of random's after n trials; "trials" and "seconds": to reach random's median V
    after REACHED trials, None unless more than half of the studies do.

    Args:
        studies: of `curves`, by "layer, sampler, seed".
        names: of the layers.
    """
    rows = []
    for group in (*([name] for name in names), *([names] if len(names) > 1 else [])):
        for sampler in SAMPLERS:
            seeds = [seed for seed in SEEDS if all(f"{name}, {sampler}, {seed}" in studies for name in group)]
            if seeds:
                row = _row(
                    {name: [studies[f"{name}, {sampler}, {seed}"] for seed in seeds] for name in group},
                    {name: [c for seed in SEEDS if (c := studies.get(f"{name}, random, {seed}"))] for name in group},
                )
                case = group[0] if len(group) == 1 else f"{len(group)} layers"
                rows.append({"case": case, "sampler": sampler, "seeds": len(seeds), **row})
    return rows


def _row(studies: Mapping[str, Sequence[Curves]], random: Mapping[str, Sequence[Curves]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    seeds = len(next(iter(studies.values())))

    def bar(name: str, trials: int) -> float:
        return statistics.median(c["volumes"][trials - 1] for c in random[name])

    for count in TRIALS:
        if all(len(c["volumes"]) >= count for some in (*studies.values(), *random.values()) for c in some):
            ratios = [
                statistics.fmean(studies[name][seed]["volumes"][count - 1] / bar(name, count) for name in studies)
                for seed in range(seeds)
            ]
            first, median, third = statistics.quantiles(ratios, n=4, method="inclusive") if seeds > 1 else ratios * 3
            row |= {f"V at {count}": median, f"spread at {count}": third - first}
    reached = [(c, bisect.bisect_left(c["volumes"], bar(name, REACHED))) for name in studies for c in studies[name]]
    within = [(n + 1, c["seconds"][n]) if n < len(c["volumes"]) else (math.inf, math.inf) for c, n in reached]
    trials, seconds = (statistics.median(values) for values in zip(*within, strict=True))
    return {
        **row,
        "trials": trials if math.isfinite(trials) else None,
        "seconds": seconds if math.isfinite(seconds) else None,
        "ask and tell, ms": 1e3 * statistics.median(c["proposing"][-1] / len(c["proposing"]) for c, _ in reached),
    }
