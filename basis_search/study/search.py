"""The search: one optuna study per layer and family, each new spec evaluated once and written down at once."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import optuna

from basis_search.errors import BadInput
from basis_search.evaluation import constraints as bounds
from basis_search.evaluation.code_version import code_version
from basis_search.evaluation.evaluate import Candidate, Evaluation, evaluate
from basis_search.evaluation.pareto import ParetoFront
from basis_search.evaluation.timing import fingerprint
from basis_search.families import FAMILIES
from basis_search.families import family as family_named
from basis_search.layers.layer import Layer
from basis_search.study import samplers
from basis_search.study.early_stopping import Rungs, foretold
from basis_search.study.optuna_storage import Location, is_database, patient
from basis_search.study.optuna_study import (
    Refused,
    open_study,
    propose,
    reap,
    seed_of,
)
from basis_search.study.proposals import DRAWS, Guess
from basis_search.study.proposer import Guide
from basis_search.workers.evaluation_log import Record
from basis_search.workers.postgres import Database
from basis_search.workers.postgres_log import DatabaseRecord
from basis_search.workers.worker import (
    PAUSE,
    Judge,
    Watcher,
    Worker,
)

STALE, EXHAUSTED = 4, 40
"""After so many proposals in a row that were known already: draw uniformly; take the family as exhausted."""
LEAST_DRAWS, DRAWS_PER_TRIAL = 100, 12
"""How many specs of each family a search chooses from."""
WORST = 1e6
"""What a failed evaluation tells the sampler for each objective."""


class NoFamilyAccepts(BadInput):
    """None of the families asked for has a structure for the layer."""


def search(
    layer: Layer,
    families: Sequence[str] = tuple(FAMILIES),
    trials: int = 16,
    seed: int = 0,
    storage: str | Path | None = None,
    *,
    spaces: Mapping[str, Any] | None = None,
    record: Record | None = None,
    watch: Watcher | None = None,
    stop: Callable[[], bool] = lambda: False,
    worker: int = 0,
    threads: int = 1,
    judge: Judge | None = None,
    wait: bool = True,
    total: int | None = None,
    sampler: str = "auto",
    limits: Mapping[str, float] | None = None,
    warm: Iterable[Evaluation] = (),
    reproducible: bool = False,
) -> ParetoFront:
    """Searches each family for specs of low error, few FLOPs and low latency; stop it at any moment, call it again.

    Specs that did well on layers alike come first, then those that forecasts, corrected by what was measured, expect
    most of; in between and after them a sampler proposes. What is dominated by forecast, by a fit on few samples or by
    its full fit is stopped there, recorded with the rung and the reason, and counts as a trial.

    Args:
        layer: what to replace.
        families: by name.
        trials: distinct specs per family, those of an earlier call and of other workers counted in.
        seed: of the samplers; each worker's is derived from it.
        storage: where optuna's studies live (shared by workers): a journal file, postgresql://user:password@host/database
            or grpc://host:port; None keeps them in memory.
        spaces: per family, its `Space` with other bounds than the default.
        record: where evaluations go; if None, the database that `storage` names, else memory.
        watch: called after each new evaluation.
        stop: asked before each trial; True ends the search with what there is.
        worker: number of this worker, for its seed.
        threads: CPU threads of the clock.
        judge: evaluates a candidate; `evaluate` in this process if None.
        wait: for what other workers have in hand at the end, to take it up if they die.
        total: distinct specs over all families; which family each is of, forecasts say. Then `trials` is not looked at.
        sampler: "auto" is as above, with a sampler by the rule of `samplers`; "tpe", "gp", "nsga2" and "random" are
            these alone: no forecasts, nothing stopped early.
        limits: at most so much of the dense layer's "flops", "parameters", "bytes" or "latency", or "error"; what is
            beyond is not fitted where that is known before, and no part of the front.
        warm: evaluations of earlier runs, whose specs are tried first where their layers are like this one.
        reproducible: proposals and stops go by foretold latencies, never by the clock's, which differ from run to run:
            one worker with an equal seed tries equal specs. Latencies are measured all the same.

    Raises:
        BadInput: an unknown family, sampler or limit; a study of another space, layer or code under the same name; a
            storage that cannot be reached, or stays away.
        NoFamilyAccepts: the reasons of each family are in the sentence.
    """
    if trials < 1:
        raise BadInput(f"trials is {trials}, but at least 1 is needed")
    if total is not None and total < 1:
        raise BadInput(f"total is {total}, but at least 1 is needed")
    bounds.check(limits or {})
    record = _record(storage) if record is None else record
    names = tuple(dict.fromkeys(families))
    spaces = {name: (spaces or {}).get(name, family_named(name).Space()) for name in names}
    one = Worker(record, worker, threads, judge or evaluate, watch)
    draws = min(DRAWS, max(LEAST_DRAWS, DRAWS_PER_TRIAL * (total or trials))) if sampler == "auto" else 0
    others = (foretold(e) if reproducible else e for e in (*record, *warm))
    guide = Guide(layer, spaces, limits, others, (seed, worker), draws)
    asking = _Asking(layer, spaces, guide, one, storage, seed, sampler, total or trials, stop, wait, reproducible)
    if sampler == "auto":
        one.judge = Rungs(one.judge, guide, lambda: asking.known())
    with record.claims.at_work(worker):
        if total is None:
            for name in names:
                asking.family(name, trials, wait=wait)
        else:
            asking.all_families(total)
        asking.clear()
    evaluations = record.of(layer.content_hash, device=fingerprint(layer.device, threads), code=code_version())
    if not evaluations and not stop():
        reasons = "; ".join(f"{name}: {reason}" for name, reason in asking.refusals.items())
        raise NoFamilyAccepts(
            f"no family accepts the layer {layer.name!r} ({layer.out_features} x {layer.in_features}): {reasons}"
        )
    return ParetoFront.of((e for e in evaluations if bounds.kept(limits or {}, e)), layer)


def _record(storage: Location | None) -> Record:
    if not is_database(storage):
        return Record()
    return DatabaseRecord(Database(str(storage)), run="")


@dataclasses.dataclass
class _Asking:
    """The loop of one layer: who proposes, who evaluates, and what the studies are told."""

    layer: Layer
    spaces: Mapping[str, Any]
    guide: Guide
    worker: Worker
    storage: Location | None
    seed: int
    sampler: str
    trials: int
    stop: Callable[[], bool]
    wait: bool
    reproducible: bool

    def __post_init__(self) -> None:
        self.refusals: dict[str, str] = {}
        self._studies: dict[str, optuna.Study] = {}
        self._samplers: dict[str, optuna.samplers.BaseSampler] = {}
        self._spent: set[str] = set()
        samplers.require(self.sampler)

    def clear(self) -> None:
        """Ends what workers that died meanwhile left running."""
        for name, study in self._studies.items():
            patient(partial(reap, study, self.layer, name, self.worker), self.storage)

    def known(self) -> list[Evaluation]:
        """All of this layer, of every family searched, as proposals and stops may see them."""
        return [self._seen(e) for name in self.spaces for e in self.worker.known(self.layer, name)]

    def _seen(self, evaluation: Evaluation) -> Evaluation:
        return foretold(evaluation, self.layer) if self.reproducible else evaluation

    def all_families(self, total: int) -> None:
        """Trials go where most is expected, until there are `total` of them or nothing new is left."""
        while not self.stop() and (done := len(self.known())) < total:
            if any(self._take_up(name) for name in self.spaces):
                continue
            left = [name for name in self.spaces if name not in self._spent and name not in self.refusals]
            others = {name: self.worker.others(self.layer, name) for name in self.spaces}
            if not left or done + sum(others.values()) >= total:
                if not (any(others.values()) and self.wait):
                    return
                time.sleep(PAUSE)  # the others finish it, or die over it and leave it to us
                continue
            guess = self._guess(left)
            name = self._turn(left) if guess is None else guess.family
            goal = len(self.worker.known(self.layer, name)) + others[name] + 1
            self.family(name, goal, guess, wait=False, wanted=(tuple(self.spaces), total))

    def _guess(self, families: Sequence[str]) -> Guess | None:
        if self.sampler != "auto":
            return None
        return self.guide.propose(families, self.known(), self.trials)

    def _turn(self, families: Sequence[str]) -> str:
        """The family whose trials were most often on the front, those seldom tried first."""
        known = self.known()
        front = ParetoFront.of(known)

        def promise(name: str) -> float:
            tried = sum(e.candidate.family == name for e in known)
            return (1 + sum(e.candidate.family == name for e in front.evaluations)) / (1 + tried)

        return max(families, key=promise)

    def family(
        self,
        name: str,
        goal: int,
        guess: Guess | None = None,
        *,
        wait: bool,
        wanted: tuple[Collection[str], int] | None = None,
    ) -> None:
        """Trials of one family until `goal` of its specs are known, the first of them as guessed.

        `wanted`: families, and how many of their specs all workers together are not to exceed; else `goal` of this one.
        """
        if name in self.refusals:
            return
        try:
            self._family(name, goal, guess, wait, wanted or ((name,), goal))
        except Refused as refusal:
            self.refusals[name] = str(refusal)

    def _family(
        self, name: str, goal: int, guess: Guess | None, wait: bool, wanted: tuple[Collection[str], int]
    ) -> None:
        layer, worker, storage = self.layer, self.worker, self.storage
        if self.stop() or len(worker.known(layer, name)) >= goal:
            return
        study = self._study(name)
        study.sampler, stale = self._samplers[name], 0
        while not self.stop() and (done := len(worker.known(layer, name))) < goal:
            if self._take_up(name):
                continue
            others = worker.others(layer, name)
            if done + others >= goal or stale >= EXHAUSTED:
                if stale >= EXHAUSTED:
                    self._spent.add(name)
                if not (others and wait):
                    return
                time.sleep(PAUSE)  # they finish it, or die over it and leave it to us
                continue
            if stale == STALE:  # a model of a small discrete space proposes its best points again and again
                study.sampler = samplers.make("random", self._seed(study), goal)
            guess = guess or (self._guess([name]) if stale < STALE else None)
            trial, spec = patient(partial(propose, study, layer, name, self.spaces[name], worker, guess), storage)
            guess = None
            candidate = Candidate(layer.name, name, spec)
            if self.sampler == "auto":
                self.guide.guess(name, spec, trial.params)
            before = len(worker.record)
            evaluation = worker.look_up(layer, candidate, trial.number) or worker.evaluate(
                layer, candidate, trial.number, wanted
            )
            stale = 0 if len(worker.record) > before else stale + 1
            self._tell(study, trial, evaluation)
            if not trial.params:
                stale = EXHAUSTED  # nothing was asked of the trial: there is one spec

    def _take_up(self, name: str) -> bool:
        """Evaluates what a dead worker had in hand of a family, if there is such a thing."""
        taken_up = self.worker.take_up(self.layer, name)
        if taken_up is None:
            return False
        number, evaluation = taken_up
        if number is not None:
            self._tell(self._study(name), number, evaluation)
        return True

    def _study(self, name: str) -> optuna.Study:
        if name not in self._studies:
            opened = patient(
                lambda: open_study(self.layer, name, self.spaces[name], self.storage, self.worker), self.storage
            )
            try:
                chosen = samplers.choose(self.sampler, self.layer, name, self.spaces[name], self.trials)
            except BadInput as reason:
                raise Refused(str(reason)) from reason
            self._samplers[name] = samplers.make(chosen, self._seed(opened), self.trials)
            self._studies[name] = opened
        return self._studies[name]

    def _seed(self, study: optuna.Study) -> int:
        return patient(lambda: seed_of(self.seed, self.worker.number, study), self.storage)

    def _tell(self, study: optuna.Study, trial: optuna.Trial | int, evaluation: Evaluation | None) -> None:
        values, state = None, optuna.trial.TrialState.FAIL
        if evaluation is not None:
            evaluation = self._seen(evaluation)
            values = [min(value, WORST) for value in evaluation.objectives]
            state = optuna.trial.TrialState.COMPLETE
            if evaluation.stopped:
                values, state = None, optuna.trial.TrialState.PRUNED

        def tell() -> None:
            if evaluation is not None and isinstance(trial, optuna.Trial):
                for quantity, amount in bounds.excess_of(self.guide.bounds, evaluation).items():
                    trial.set_constraint(quantity, amount)
                if evaluation.stopped:
                    trial.set_user_attr("stopped", evaluation.stopped)
                    trial.set_user_attr("reason", evaluation.failure)
            study.tell(trial, values, state=state, skip_if_finished=True)

        patient(tell, self.storage)
