"""A search's studies in optuna: opened under a name, what dead workers left running ended, asked for trials."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from typing import Any

import optuna

from basis_search.errors import BadInput
from basis_search.evaluation.code_version import code_version, sources
from basis_search.families import family as family_named
from basis_search.layers.layer import Layer
from basis_search.study.optuna_storage import Location, open_storage, redacted
from basis_search.study.proposals import Guess
from basis_search.workers.worker import Worker

OBJECTIVES = ("error", "flops_ratio", "latency_ratio")


class Refused(Exception):
    """A family has no spec for this layer."""


def quiet() -> None:
    """optuna says nothing of each trial: progress is ours to show."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def propose(
    study: optuna.Study, layer: Layer, name: str, space: Any, worker: Worker, guess: Guess | None
) -> tuple[optuna.Trial, Any]:
    if guess is not None and guess.params:
        study.enqueue_trial(dict(guess.params))
    trial = study.ask()
    trial.set_user_attr("worker", worker.record.claims.me)
    try:
        return trial, family_named(name).suggest(trial, layer, space)
    except BadInput as reason:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        raise Refused(str(reason)) from reason


def reap(study: optuna.Study, layer: Layer, name: str, worker: Worker) -> None:
    """Ends the trials of dead workers, which would repel a sampler for ever; what they claimed is taken up apart.

    One that bears no worker's name may be in the hands of a worker that is about to sign it, unless there is no other.
    """
    running = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
    if running:
        claims = worker.record.claims
        alive = claims.workers() if claims.alone() else {*claims.workers(), None}
        claimed = {claim.trial for claim in claims.of_others(layer.content_hash, name)}
        for trial in running:
            if trial.number not in claimed and trial.user_attrs.get("worker") not in alive:
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)


def open_study(layer: Layer, name: str, space: Any, storage: Location | None, worker: Worker) -> optuna.Study:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            storage=None if storage is None else open_storage(storage),
            study_name="/".join(part for part in (worker.record.run, layer.name, name) if part),
            directions=["minimize"] * len(OBJECTIVES),
            load_if_exists=True,
        )
        reap(study, layer, name, worker)
    mine = {
        "space": json.dumps(dataclasses.asdict(space), sort_keys=True),
        "objectives": ",".join(OBJECTIVES),
        "layer": layer.content_hash,
        "code": sources(code_version()),
    }
    theirs = study.user_attrs
    for key, value in mine.items():
        if key not in theirs:
            study.set_user_attr(key, value)
        elif theirs[key] != value:
            where = "memory" if storage is None else redacted(storage)
            what = {"layer": "another layer of that name: content", "code": "other code: basis_search"}.get(key, key)
            raise BadInput(
                f"the study {study.study_name!r} in {where} was begun with {what} {theirs[key]}, not {value}; resume "
                "it with the same, or start another run folder"
            )
    return study


def seed_of(seed: int, worker: int, study: optuna.Study) -> int:
    """Another one for each worker, and for each time that a study is taken up again."""
    digest = hashlib.sha256(f"{seed} {worker} {study.study_name} {len(study.trials)}".encode()).digest()
    return int.from_bytes(digest[:4])
