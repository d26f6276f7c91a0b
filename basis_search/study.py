"""The search: one optuna study per layer and family, each new spec evaluated once and written down at once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna

from basis_search.database import Database
from basis_search.database_record import DatabaseRecord
from basis_search.errors import BadInput
from basis_search.evaluate import Candidate, Evaluation, evaluate
from basis_search.families import FAMILIES
from basis_search.families import family as family_named
from basis_search.layer import Layer
from basis_search.pareto import ParetoFront
from basis_search.record import Record
from basis_search.storages import Location, is_database, open_storage, patient, redacted
from basis_search.timing import fingerprint
from basis_search.version import code_version, sources
from basis_search.worker import Judge, Watcher, Worker

OBJECTIVES = ("error", "flops_ratio", "latency_ratio")
STALE, EXHAUSTED = 4, 40
"""After so many proposals in a row that were known already: draw uniformly; take the family as exhausted."""
PAUSE = 0.2
"""Seconds between looks at what the other workers have in hand."""
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
) -> ParetoFront:
    """Searches each family for specs of low error, few FLOPs and low latency; stop it at any moment, call it again.

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

    Raises:
        BadInput: an unknown family; a study of another space, layer or code under the same name; a storage that
            cannot be reached, or stays away.
        NoFamilyAccepts: the reasons of each family are in the sentence.
    """
    if trials < 1:
        raise BadInput(f"trials is {trials}, but at least 1 is needed")
    record = _record(storage) if record is None else record
    spaces = spaces or {}
    refusals = {}
    one = Worker(record, worker, threads, judge or evaluate, watch)
    with record.claims.at_work(worker):
        for name in dict.fromkeys(families):
            space = spaces.get(name, family_named(name).Space())
            try:
                _search_family(layer, name, space, trials, seed, storage, one, stop, wait)
            except _Refused as refusal:
                refusals[name] = str(refusal)
    evaluations = record.of(layer.content_hash, device=fingerprint(layer.device, threads), code=code_version())
    if not evaluations and not stop():
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refusals.items())
        raise NoFamilyAccepts(
            f"no family accepts the layer {layer.name!r} ({layer.out_features} x {layer.in_features}): {reasons}"
        )
    return ParetoFront.of(evaluations, layer)


def _record(storage: Location | None) -> Record:
    if not is_database(storage):
        return Record()
    return DatabaseRecord(Database(str(storage)), run="")


class _Refused(Exception):
    """A family has no spec for this layer."""


def quiet() -> None:
    """optuna says nothing of each trial: progress is ours to show."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def _search_family(
    layer: Layer,
    name: str,
    space: Any,
    trials: int,
    seed: int,
    storage: Location | None,
    worker: Worker,
    stop: Callable[[], bool],
    wait: bool,
) -> None:
    if stop() or len(worker.known(layer, name)) >= trials:
        return
    study = patient(lambda: _open_study(layer, name, space, seed, storage, worker, trials), storage)

    def tell(trial: optuna.Trial | int, evaluation: Evaluation | None) -> None:
        values = None if evaluation is None else [min(value, WORST) for value in evaluation.objectives]
        state = optuna.trial.TrialState.FAIL if evaluation is None else None
        patient(lambda: study.tell(trial, values, state=state, skip_if_finished=True), storage)

    stale = 0
    while not stop() and (done := len(worker.known(layer, name))) < trials:
        taken_up = worker.take_up(layer, name)
        if taken_up is not None:
            number, left = taken_up
            if number is not None:
                tell(number, left)
            continue
        others = worker.others(layer, name)
        if done + others >= trials or stale >= EXHAUSTED:
            if not (others and wait):
                return
            time.sleep(PAUSE)  # they finish it, or die over it and leave it to us
            continue
        if stale == STALE:  # a model of a small discrete space proposes its best points again and again
            study.sampler = optuna.samplers.RandomSampler(seed=_seed(seed, worker.number, study))
        trial, spec = patient(lambda: _propose(study, layer, name, space, worker), storage)
        candidate = Candidate(layer.name, name, spec)
        before = len(worker.record)
        evaluation = worker.look_up(layer, candidate, trial.number) or worker.evaluate(layer, candidate, trial.number)
        stale = 0 if len(worker.record) > before else stale + 1
        tell(trial, evaluation)
        if not trial.params:
            stale = EXHAUSTED  # nothing was asked of the trial: there is one spec


def _propose(study: optuna.Study, layer: Layer, name: str, space: Any, worker: Worker) -> tuple[optuna.Trial, Any]:
    trial = study.ask()
    trial.set_user_attr("worker", worker.record.claims.me)
    try:
        return trial, family_named(name).suggest(trial, layer, space)
    except BadInput as reason:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        raise _Refused(str(reason)) from reason


def _reap(study: optuna.Study, layer: Layer, name: str, worker: Worker) -> None:
    """Ends the trials of dead workers, which would repel a sampler for ever; what they claimed is taken up apart."""
    running = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
    if running:
        alive = worker.record.claims.workers()
        claimed = {claim.trial for claim in worker.record.claims.of_others(layer.content_hash, name)}
        for trial in running:
            if trial.number not in claimed and trial.user_attrs.get("worker") not in {*alive, None}:
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)


def _open_study(
    layer: Layer,
    name: str,
    space: Any,
    seed: int,
    storage: Location | None,
    worker: Worker,
    trials: int,
) -> optuna.Study:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            storage=None if storage is None else open_storage(storage),
            study_name="/".join(part for part in (worker.record.run, layer.name, name) if part),
            directions=["minimize"] * len(OBJECTIVES),
            load_if_exists=True,
        )
        _reap(study, layer, name, worker)
        study.sampler = optuna.samplers.TPESampler(
            multivariate=True,
            group=True,
            constant_liar=True,
            n_startup_trials=max(4, trials // 2),
            seed=_seed(seed, worker.number, study),
        )
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


def _seed(seed: int, worker: int, study: optuna.Study) -> int:
    """Another one for each worker, and for each time that a study is taken up again."""
    digest = hashlib.sha256(f"{seed} {worker} {study.study_name} {len(study.trials)}".encode()).digest()
    return int.from_bytes(digest[:4])
