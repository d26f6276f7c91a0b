"""The optuna study of one family on one layer: suggests specs and stores their evaluations as trials."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import optuna

from basis_search.errors import BadInput
from basis_search.evaluation.candidate import Evaluation
from basis_search.evaluation.code_version import code_version, sources
from basis_search.evaluation.constraints import excess_of
from basis_search.families import family as family_named
from basis_search.layers.layer import Layer
from basis_search.study import samplers
from basis_search.study.optuna_storage import (
    open_storage,
    retry_while_away,
)
from basis_search.study.proposals import Proposal, RandomTrial
from basis_search.study.settings import SearchSettings
from basis_search.workers.redaction import redacted_url
from basis_search.workers.worker import Worker

OBJECTIVES = ("error", "flops_ratio", "latency_ratio")
WORST = 1e6
"""Objective values of a failed evaluation, whose own are infinite."""

T = TypeVar("T")


class Refused(Exception):
    """A family has no spec for this layer."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Only warnings and errors of optuna's loggers inside; its verbosity is as before afterwards."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


class FamilyStudy:
    """The study of one family on one layer; each call is retried while the study's storage is away.

    Raises:
        Refused: the family has no spec for the layer.
        BadInput: a study of that name is of another space, layer or code; the storage cannot be used or stays away.
    """

    def __init__(self, layer: Layer, family: str, settings: SearchSettings, worker: Worker):
        self._layer, self._family, self._settings, self._worker = layer, family, settings, worker
        try:  # before there is a study: one of a family without specs would stay empty
            module, space = family_named(family), settings.spaces[family]
            module.suggest(RandomTrial(random.Random(0)), layer, space)
            name = samplers.choose(settings.sampler, layer, family, space, settings.budget)
        except BadInput as reason:
            raise Refused(str(reason)) from reason
        self._study = self._retried(self._open)
        self._sampler = samplers.make(name, self._seed(), settings.budget)

    def use_own_sampler(self) -> None:
        """Samples by the sampler that the settings name or the rule chooses."""
        self._study.sampler = self._sampler

    def sample_uniformly(self, trials: int) -> None:
        """Samples uniformly until `use_own_sampler`."""
        self._study.sampler = samplers.make("random", self._seed(), trials)

    def ask(self, proposal: Proposal | None) -> tuple[optuna.Trial, Any]:
        """A new trial and its spec: the proposal's where there is one, else one that the sampler suggests."""
        return self._retried(lambda: self._ask(proposal))

    def tell(self, trial: optuna.Trial | int, evaluation: Evaluation | None) -> None:
        """Ends a trial: complete, pruned if it was stopped early, failed if there is no evaluation."""
        values, state = None, optuna.trial.TrialState.FAIL
        if evaluation is not None and evaluation.stopped:
            state = optuna.trial.TrialState.PRUNED
        elif evaluation is not None:
            values = [min(value, WORST) for value in evaluation.objectives]
            state = optuna.trial.TrialState.COMPLETE

        def tell() -> None:
            if evaluation is not None and isinstance(trial, optuna.Trial):
                for quantity, amount in excess_of(self._settings.limits, evaluation).items():
                    trial.set_constraint(quantity, amount)
                if evaluation.stopped:
                    trial.set_user_attr("stopped", evaluation.stopped)
                    trial.set_user_attr("reason", evaluation.failure)
            self._study.tell(trial, values, state=state, skip_if_finished=True)

        self._retried(tell)

    def end_abandoned_trials(self) -> None:
        """Fails the running trials of dead workers, which would repel a sampler for ever; leases are left alone.

        A trial without a worker's name may be one whose worker has not signed it yet, unless no other worker is alive.
        """
        self._retried(lambda: self._end_abandoned_trials(self._study))

    def _ask(self, proposal: Proposal | None) -> tuple[optuna.Trial, Any]:
        if proposal is not None and proposal.params:
            self._study.enqueue_trial(dict(proposal.params))
        trial = self._study.ask()
        trial.set_user_attr("worker", self._worker.record.leases.worker_id)
        try:
            return trial, family_named(self._family).suggest(trial, self._layer, self._settings.spaces[self._family])
        except BadInput as reason:
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            raise Refused(str(reason)) from reason

    def _open(self) -> optuna.Study:
        storage = self._settings.storage
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study = optuna.create_study(
                storage=None if storage is None else open_storage(storage),
                study_name="/".join(part for part in (self._worker.record.run, self._layer.name, self._family) if part),
                directions=["minimize"] * len(OBJECTIVES),
                load_if_exists=True,
            )
            self._end_abandoned_trials(study)
        self._check_origin(study)
        return study

    def _check_origin(self, study: optuna.Study) -> None:
        """Signs a new study; raises BadInput for one of another space, layer or code."""
        mine = {
            "space": json.dumps(dataclasses.asdict(self._settings.spaces[self._family]), sort_keys=True),
            "objectives": ",".join(OBJECTIVES),
            "layer": self._layer.content_hash,
            "code": sources(code_version()),
        }
        if self._layer.device.type == "cuda":  # elsewhere there is one clock
            mine["clock"] = self._worker.clock_of(self._layer)
        theirs = study.user_attrs
        for key, value in mine.items():
            if key not in theirs:
                study.set_user_attr(key, value)
            elif theirs[key] != value:
                where = "memory" if self._settings.storage is None else redacted_url(self._settings.storage)
                what = {
                    "layer": "another layer of that name, device or dtype: content",
                    "code": "other code: basis_search",
                }.get(key, key)
                raise BadInput(
                    f"the study {study.study_name!r} in {where} was begun with {what} {theirs[key]}, not {value}; "
                    "resume it with the same, or start another run folder"
                )

    def _end_abandoned_trials(self, study: optuna.Study) -> None:
        running = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
        if running:
            leases = self._worker.record.leases
            alive = leases.living_workers() if leases.is_only_worker() else {*leases.living_workers(), None}
            leased = {lease.trial for lease in leases.held_by_others(self._layer.content_hash, self._family)}
            for trial in running:
                if trial.number not in leased and trial.user_attrs.get("worker") not in alive:
                    study.tell(trial.number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)

    def _seed(self) -> int:
        """From the search's seed, the worker's number, the study's name and its number of trials so far."""
        study, seed, worker = self._study, self._settings.seed, self._worker.number
        text = self._retried(lambda: f"{seed} {worker} {study.study_name} {len(study.trials)}")
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])

    def _retried(self, call: Callable[[], T]) -> T:
        return retry_while_away(call, self._settings.storage)
