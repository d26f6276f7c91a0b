"""The loop of a search over one layer: propose a spec, evaluate it unless it is known, report it to its study."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from basis_search.errors import BadInput
from basis_search.evaluation import constraints
from basis_search.evaluation.candidate import Candidate, Evaluation
from basis_search.evaluation.device_errors import in_one_sentence
from basis_search.evaluation.pareto import ParetoFront
from basis_search.layers.layer import Layer
from basis_search.study.early_stopping import Stages
from basis_search.study.history import History
from basis_search.study.optuna_study import FamilyStudy, Refused, quiet
from basis_search.study.proposals import Proposal
from basis_search.study.proposer import Proposer
from basis_search.study.settings import SearchSettings
from basis_search.workers.worker import PAUSE, Worker

if TYPE_CHECKING:
    import optuna

REPEATS_UNTIL_UNIFORM, REPEATS_UNTIL_EXHAUSTED = 4, 40
"""After so many proposals in a row of known specs: sample uniformly; end the family as exhausted."""


class NoFamilyAccepts(BadInput):
    """No family that was asked for has a structure for the layer."""


def search_layer(
    layer: Layer, settings: SearchSettings, worker: Worker, stop: Callable[[], bool] = lambda: False, wait: bool = True
) -> ParetoFront:
    """Searches one layer as one of the workers that share a record.

    Args:
        layer: what to replace.
        settings: the same for all workers.
        worker: record, evaluator and number of this one.
        stop: called before each trial; True ends the search.
        wait: at the end, for candidates that other workers are evaluating; takes them over if those die.

    Raises:
        BadInput: as `search`; DeviceLost and PoisonedContext are some.
        NoFamilyAccepts: no family has a spec for the layer; the message gives each family's reason.
    """
    with in_one_sentence():
        history = History(layer, settings, worker)
        proposer = Proposer(layer, settings, history.others(), worker.number)
        if settings.predicts:
            worker = dataclasses.replace(worker, evaluator=Stages(worker.evaluator, proposer, history.evaluations))
        loop = SearchLoop(layer, settings, worker, proposer, stop, wait)
        with quiet(), worker.record.leases.joined(worker.number):
            loop.run()
    evaluations = worker.evaluations_of(layer)
    if not evaluations and not stop():
        reasons = "; ".join(f"{f}: {reason.removeprefix(f + ': ')}" for f, reason in loop.refusals.items())
        raise NoFamilyAccepts(
            f"no family accepts the layer {layer.name!r} ({layer.out_features} x {layer.in_features}): {reasons}"
        )
    front = ParetoFront.of((e for e in evaluations if constraints.kept(settings.limits, e)), layer)
    if worker.record.fitted is not None:
        worker.record.fitted.offer_stored(front.evaluations)
    return front


@dataclasses.dataclass(frozen=True)
class TrialTarget:
    """How many distinct specs of some families all workers together evaluate."""

    families: tuple[str, ...]
    count: int


class SearchLoop:
    """Runs the trials of one layer.

    Args:
        layer, settings, worker, stop, wait: as `search_layer`; the worker's evaluator runs the stages.
        proposer: of specs, where the settings do not leave that to a sampler.

    Attributes:
        refusals: reasons of the families that have no spec for the layer.
    """

    def __init__(
        self,
        layer: Layer,
        settings: SearchSettings,
        worker: Worker,
        proposer: Proposer,
        stop: Callable[[], bool],
        wait: bool,
    ):
        self.refusals: dict[str, str] = {}
        self._layer, self._settings, self._worker = layer, settings, worker
        self._proposer, self._stop, self._wait = proposer, stop, wait
        self._history = History(layer, settings, worker)
        self._studies: dict[str, FamilyStudy] = {}
        self._exhausted: set[str] = set()

    def run(self) -> None:
        """Runs trials until the settings' number is reached, every space is exhausted or `stop` returns True."""
        if self._settings.total is None:
            for family in self._settings.spaces:
                self._search(family, TrialTarget((family,), self._settings.trials), self._wait)
        else:
            self._search_all(TrialTarget(tuple(self._settings.spaces), self._settings.total))
        for study in self._studies.values():
            study.end_abandoned_trials()

    def _search_all(self, target: TrialTarget) -> None:
        """One trial after another, each of the family whose proposal promises most."""
        while not self._stop() and (done := len(self._history.evaluations())) < target.count:
            if any(self._take_over(family) for family in target.families):
                continue
            open_families = [f for f in target.families if f not in self._exhausted and f not in self.refusals]
            others = {family: self._worker.leased_by_others(self._layer, family) for family in target.families}
            if not open_families or done + sum(others.values()) >= target.count:
                if not (any(others.values()) and self._wait):
                    return
                time.sleep(PAUSE)  # until other workers have finished theirs, or died
                continue
            proposal = self._propose(open_families)
            family = self._most_successful(open_families) if proposal is None else proposal.family
            goal = len(self._worker.known(self._layer, family)) + others[family] + 1
            self._search(family, target, wait=False, goal=goal, first=proposal)

    def _search(
        self, family: str, target: TrialTarget, wait: bool, *, goal: int | None = None, first: Proposal | None = None
    ) -> None:
        """Runs trials of one family until `goal` of its specs are known, by default the target's count.

        `first` is the first trial's spec. A family without a spec for the layer is noted in `refusals`.
        """
        goal = target.count if goal is None else goal
        if family not in self.refusals and not self._stop() and len(self._worker.known(self._layer, family)) < goal:
            try:
                self._run_trials(family, goal, target, wait, first)
            except Refused as refusal:
                self.refusals[family] = str(refusal)

    def _run_trials(self, family: str, goal: int, target: TrialTarget, wait: bool, proposal: Proposal | None) -> None:
        study, repeats = self._study(family), 0
        study.use_own_sampler()
        while not self._stop() and (done := len(self._worker.known(self._layer, family))) < goal:
            if self._take_over(family):
                continue
            others = self._worker.leased_by_others(self._layer, family)
            if repeats >= REPEATS_UNTIL_EXHAUSTED:
                self._exhausted.add(family)
            if done + others >= goal or repeats >= REPEATS_UNTIL_EXHAUSTED:
                if not (others and wait):
                    return
                time.sleep(PAUSE)  # until other workers have finished theirs, or died
                continue
            if repeats == REPEATS_UNTIL_UNIFORM:  # a model of a small discrete space repeats its best points
                study.sample_uniformly(goal)
            if proposal is None and repeats < REPEATS_UNTIL_UNIFORM:
                proposal = self._propose([family])
            new, one_spec = self._run_trial(family, study, target, proposal)
            proposal, repeats = None, 0 if new else repeats + 1
            if one_spec:
                repeats = REPEATS_UNTIL_EXHAUSTED

    def _run_trial(
        self, family: str, study: FamilyStudy, target: TrialTarget, proposal: Proposal | None
    ) -> tuple[bool, bool]:
        """One trial: whether its evaluation is new, and whether the space has no parameters and thus one spec."""
        layer, worker = self._layer, self._worker
        trial, spec = study.ask(proposal)
        candidate = Candidate(layer.name, family, spec)
        if self._settings.predicts:  # for the stages, which record the parameters
            self._proposer.surrogate.include(family, spec, trial.params)
        before = len(worker.record)
        evaluation = worker.look_up(layer, candidate, trial.number)
        if evaluation is None:
            evaluation = worker.evaluate(layer, candidate, trial.number, (target.families, target.count))
        new = len(worker.record) > before
        self._tell(study, trial, evaluation)
        return new, not trial.params

    def _propose(self, families: Sequence[str]) -> Proposal | None:
        if not self._settings.predicts:
            return None
        return self._proposer.propose(families, self._history.evaluations())

    def _most_successful(self, families: Collection[str]) -> str:
        """The family with the largest (1 + evaluations on the front) / (1 + evaluations)."""
        known = self._history.evaluations()
        front = ParetoFront.of(known).evaluations

        def success(family: str) -> float:
            tried = sum(e.candidate.family == family for e in known)
            return (1 + sum(e.candidate.family == family for e in front)) / (1 + tried)

        return max(families, key=success)

    def _take_over(self, family: str) -> bool:
        """Evaluates a candidate of the family whose worker died; whether there was one."""
        taken_over = self._worker.take_over(self._layer, family)
        if taken_over is None:
            return False
        number, evaluation = taken_over
        if number is not None:
            self._tell(self._study(family), number, evaluation)
        return True

    def _tell(self, study: FamilyStudy, trial: optuna.Trial | int, evaluation: Evaluation | None) -> None:
        study.tell(trial, None if evaluation is None else self._history.view(evaluation))

    def _study(self, family: str) -> FamilyStudy:
        if family not in self._studies:
            self._studies[family] = FamilyStudy(self._layer, family, self._settings, self._worker)
        return self._studies[family]
