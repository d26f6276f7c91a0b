"""`search`: finds replacements of one layer that trade error for FLOPs and latency."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from basis_search.errors import BadInput
from basis_search.evaluation.candidate import Evaluation
from basis_search.evaluation.evaluate import evaluate
from basis_search.evaluation.pareto import ParetoFront
from basis_search.evaluation.timing import AUTO, clock_for
from basis_search.families import FAMILIES
from basis_search.layers.layer import Layer
from basis_search.study.loop import search_layer
from basis_search.study.optuna_storage import Location, is_database
from basis_search.study.settings import SearchSettings, spaces_of
from basis_search.study.transfer import warn_without_influence
from basis_search.workers.evaluation_log import Record
from basis_search.workers.placement import placed
from basis_search.workers.postgres import Database
from basis_search.workers.postgres_log import DatabaseRecord
from basis_search.workers.worker import Evaluator, Watcher, Worker, takes


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
    judge: Evaluator | None = None,
    wait: bool = True,
    total: int | None = None,
    sampler: str = "auto",
    limits: Mapping[str, float] | None = None,
    warm: Iterable[Evaluation] = (),
    reproducible: bool = False,
    device: str | torch.device | None = None,
    clock: str = AUTO,
) -> ParetoFront:
    """Searches for replacements of a layer and returns the Pareto front of error, FLOPs and latency.

    Each trial proposes a spec of a family, fits it to the layer, checks its kernels and times them against the dense
    layer. Specs on the fronts of similar layers come first, then those whose predicted error and latency, corrected by
    the measurements so far, promise the largest gain; every sixth trial is an optuna sampler's. A candidate that a
    finished one dominates is stopped early, by its prediction, by a fit on an eighth of the samples or by its full fit;
    it is recorded with the reason and counts as a trial.

    Every evaluation is in the record before the next trial starts. To resume, call again with the same record (and
    storage): known specs count as trials and are not evaluated again.

    Example:
        >>> front = bs.search(layer, ("lowrank", "pq"), trials=8, record=bs.Record(Path("evaluations.jsonl")))

    Args:
        layer: the dense layer to replace, with samples of its inputs.
        families: names of the families to search.
        trials: distinct specs per family, those of earlier calls and of other workers included.
        seed: of the samplers; each worker's seed is derived from it and from `worker`.
        storage: of optuna's studies, which workers share: a journal file,
            postgresql://user:password@host/database or grpc://host:port; None keeps them in memory.
        spaces: search spaces by family, where not the family's default `Space()`.
        record: of the evaluations; by default the PostgreSQL database that `storage` names, else memory.
        watch: called with each new evaluation.
        stop: called before each trial; True ends the search with what it has found.
        worker: number of this worker, from 0.
        threads: CPU threads with which kernels are timed.
        judge: evaluates a candidate, with the parameters of `basis_search.evaluation.evaluate.evaluate`, which is the
            default; `basis_search.workers.subprocess_evaluator` does so in a child process with time and memory limits.
        wait: at the end, for candidates that other workers are evaluating, to take them over if those workers die.
        total: distinct specs over all families together, each trial of the family that promises most; replaces
            `trials`.
        sampler: "auto" as described above, with a sampler chosen by the space and the number of trials. "tpe", "gp",
            "nsga2" and "random" use that sampler alone, without predictions or early stopping.
        limits: upper bounds of "flops", "parameters", "bytes", "latency" (ratios to the dense layer) and "error".
            A candidate whose cost exceeds one is not fitted, and none that exceeds one is on the front.
        warm: evaluations of earlier runs, whose best specs are tried first if their layers are similar.
        reproducible: proposals and early stopping use predicted latencies instead of measured ones, which differ from
            run to run; with one worker, equal seeds then try equal specs in equal order.
        device: where the layer runs, "cpu", "cuda" or "cuda:1"; "cuda" gives worker N the GPU N modulo their number.
            None keeps the layer's own device.
        clock: the latency to minimise: "eager" of plain calls, "graph" of calls replayed from a CUDA graph, "auto" the
            latter on CUDA. Both are recorded there.

    Returns:
        The non-dominated evaluations of this layer, with this device and code, that keep the limits.

    Raises:
        DeviceLost: a BadInput; the GPU is gone. All evaluations so far are recorded.
        PoisonedContext: a BadInput; a candidate made the GPU unusable for this process, see `judge`.
        BadInput: a device that is not there; a clock that the device or `judge` lacks; an unknown family, sampler or
            limit; a number of trials below 1; a study in `storage` of the same name, but another space, layer, code or
            clock; a storage that cannot be used or stays away.
        NoFamilyAccepts: a BadInput; no family has a spec for the layer, for the reasons in its message.
    """
    settings = SearchSettings(
        spaces=spaces_of(families, spaces), trials=trials, total=total, seed=seed, sampler=sampler,
        limits=dict(limits or {}), warm=tuple(warm), reproducible=reproducible, storage=storage,
    )  # fmt: skip
    (layer,) = placed([layer], device, worker=worker)
    clock_for(layer.device, clock)
    if judge is not None and clock != AUTO and not takes(judge, "clock"):
        raise BadInput(f"clock is {clock!r}, but the judge given has no parameter clock; leave it at 'auto'")
    record = _record(storage) if record is None else record
    one = Worker(record, worker, threads, judge or evaluate, watch, clock=clock)
    if worker == 0:
        warn_without_influence([layer])
    return search_layer(layer, settings, one, stop, wait)


def _record(storage: Location | None) -> Record:
    return DatabaseRecord(Database(str(storage)), run="") if is_database(storage) else Record()
