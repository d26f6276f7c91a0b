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
from optuna.storages.journal import JournalFileBackend

from basis_search.errors import BadInput
from basis_search.evaluate import Candidate, Evaluation, evaluate
from basis_search.families import FAMILIES
from basis_search.families import family as family_named
from basis_search.layer import Layer
from basis_search.pareto import ParetoFront
from basis_search.record import Record

OBJECTIVES = ("error", "flops_ratio", "latency_ratio")
STALE, EXHAUSTED = 4, 40
"""After so many proposals in a row that were known already: draw uniformly; take the family as exhausted."""
WORST = 1e6
"""What a failed evaluation tells the sampler for each objective."""


class NoFamilyAccepts(BadInput):
    """None of the families asked for has a structure for the layer."""


Watcher = Callable[[Evaluation], None]


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
) -> ParetoFront:
    """Searches each family for specs of low error, few FLOPs and low latency; stop it at any moment, call it again.

    Args:
        layer: what to replace.
        families: by name.
        trials: distinct specs per family, those of an earlier call and of other workers counted in.
        seed: of the samplers; each worker's is derived from it.
        storage: a journal file for optuna (shared by workers), or None to keep the studies in memory.
        spaces: per family, its `Space` with other bounds than the default.
        record: where evaluations go; in memory if None.
        watch: called after each new evaluation.
        stop: asked before each trial; True ends the search with what there is.
        worker: number of this worker, for its seed.
        threads: CPU threads of the clock.

    Raises:
        BadInput: an unknown family, or a study of another space or layer under the same name.
        NoFamilyAccepts: the reasons of each family are in the sentence.
    """
    if trials < 1:
        raise BadInput(f"trials is {trials}, but at least 1 is needed")
    record = Record() if record is None else record
    spaces = spaces or {}
    refusals = {}
    for name in dict.fromkeys(families):
        space = spaces.get(name, family_named(name).Space())
        try:
            _search_family(layer, name, space, trials, seed, storage, record, watch, stop, worker, threads)
        except _Refused as refusal:
            refusals[name] = str(refusal)
    evaluations = record.of(layer.content_hash)
    if not evaluations and not stop():
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refusals.items())
        raise NoFamilyAccepts(
            f"no family accepts the layer {layer.name!r} ({layer.out_features} x {layer.in_features}): {reasons}"
        )
    return ParetoFront.of(evaluations, layer)


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
    storage: str | Path | None,
    record: Record,
    watch: Watcher | None,
    stop: Callable[[], bool],
    worker: int,
    threads: int,
) -> None:
    def done() -> int:
        record.refresh()
        return len(record.of(layer.content_hash, name))

    if stop() or done() >= trials:
        return
    module = family_named(name)
    study = _open_study(layer, name, space, seed, storage, worker, trials)
    stale = 0
    while stale < EXHAUSTED and not stop() and done() < trials:
        if stale == STALE:  # a model of a small discrete space proposes its best points again and again
            study.sampler = optuna.samplers.RandomSampler(seed=_seed(seed, worker, study))
        trial = study.ask()
        try:
            spec = module.suggest(trial, layer, space)
        except BadInput as reason:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            raise _Refused(str(reason)) from reason
        candidate = Candidate(layer.name, name, spec)
        evaluation = record.get(layer.content_hash, candidate.hash)
        if evaluation is None:
            stale = 0
            started = time.time()
            evaluation = evaluate(layer, name, spec, threads=threads)
            record.add(evaluation, worker=worker, trial=trial.number, started=started, finished=time.time())
            if watch is not None:
                watch(evaluation)
        else:
            stale += 1
        study.tell(trial, [min(value, WORST) for value in evaluation.objectives])
        if not trial.params:
            return  # nothing was asked of the trial: there is one spec, and it is known now


def _open_study(
    layer: Layer, name: str, space: Any, seed: int, storage: str | Path | None, worker: int, trials: int
) -> optuna.Study:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            storage=None if storage is None else _storage(storage),
            study_name=f"{layer.name}/{name}",
            directions=["minimize"] * len(OBJECTIVES),
            load_if_exists=True,
        )
        study.sampler = optuna.samplers.TPESampler(
            multivariate=True,
            group=True,
            constant_liar=True,
            n_startup_trials=max(4, trials // 2),
            seed=_seed(seed, worker, study),
        )
    mine = {
        "space": json.dumps(dataclasses.asdict(space), sort_keys=True),
        "objectives": ",".join(OBJECTIVES),
        "layer": layer.content_hash,
    }
    theirs = study.user_attrs
    for key, value in mine.items():
        if key not in theirs:
            study.set_user_attr(key, value)
        elif theirs[key] != value:
            raise BadInput(
                f"the study {study.study_name!r} in {storage} was begun with {key} {theirs[key]}, not {value}; resume "
                "it with the same, or start another run folder"
            )
    return study


def _seed(seed: int, worker: int, study: optuna.Study) -> int:
    """Another one for each worker, and for each time that a study is taken up again."""
    digest = hashlib.sha256(f"{seed} {worker} {study.study_name} {len(study.trials)}".encode()).digest()
    return int.from_bytes(digest[:4])


_open_storages: dict[str, optuna.storages.BaseStorage] = {}


def _storage(location: str | Path) -> optuna.storages.BaseStorage:
    """One storage per file and process: opening a journal reads it whole."""
    key = str(Path(location).resolve())
    if key not in _open_storages:
        backend = JournalFileBackend(key)
        _open_storages[key] = optuna.storages.JournalStorage(backend)
    return _open_storages[key]
