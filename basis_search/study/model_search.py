"""Searches the layers of a whole model: one of each kind leads, and what lies on its front is fitted to the others.

Layers of one kind (rows, features, bias, dtype) share measured latencies, so each structure is timed once per kind.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from typing import Any

import torch

from basis_search.errors import BadInput
from basis_search.evaluation.evaluate import Candidate, Evaluation, evaluate
from basis_search.evaluation.pareto import ParetoFront
from basis_search.evaluation.shared_latency import twin_of
from basis_search.families import FAMILIES
from basis_search.layers.layer import Layer
from basis_search.study.loop import NoFamilyAccepts
from basis_search.study.search import search
from basis_search.study.transfer import kinds as of_kinds
from basis_search.workers.evaluation_log import Record

Watcher = Callable[[Evaluation], None]


def search_model(
    layers: Iterable[Layer],
    families: Sequence[str] = tuple(FAMILIES),
    trials: int = 8,
    seed: int = 0,
    *,
    leads: int = 1,
    workers: int = 1,
    threads: int = 1,
    spaces: Mapping[str, Any] | None = None,
    record: Record | None = None,
    watch: Watcher | None = None,
) -> dict[str, ParetoFront]:
    """Fronts of all layers of a model, for `plan`; call it again with the same record and it goes on where it was.

    Args:
        layers: as captured.
        families: by name.
        trials: distinct specs per family on each leading layer.
        seed: of the samplers.
        leads: layers of each kind that are searched, the most sensitive ones; the others are given what lies on the
            leaders' fronts.
        workers: processes that fit and judge at the same time; timing is one at a time all the same.
        threads: CPU threads of the clock.
        spaces: per family, its `Space` with other bounds than the default.
        record: where evaluations go; in memory if None. `record.of(layer.content_hash)` is the whole table of a layer.
        watch: called after each new evaluation.

    Raises:
        BadInput: no layer, or an unknown family.
        NoFamilyAccepts: no family accepts one of the leading layers.
    """
    if leads < 1 or workers < 1:
        raise BadInput(f"leads is {leads} and workers is {workers}, but at least 1 of each is needed")
    kinds = of_kinds(layers)
    record = Record() if record is None else record

    def keep(evaluations: Iterable[Evaluation]) -> None:
        for evaluation in evaluations:
            if not _known(record, evaluation.layer_hash, evaluation.candidate):
                record.add(evaluation)
                if watch is not None:
                    watch(evaluation)

    first = [layer for members in kinds.values() for layer in members[:leads]]
    with ExitStack() as stack:
        pool = None if workers == 1 else stack.enter_context(_pool(workers))
        for found in _run(
            pool,
            [
                (_lead, (layer, name, trials, seed, threads, (spaces or {}).get(name), record.of(layer.content_hash)))
                for layer in first
                for name in families
                if len(record.of(layer.content_hash, name)) < trials
            ],
        ):
            keep(found)
        for layer in first:
            if all(e.failure is not None for e in record.of(layer.content_hash)):
                raise NoFamilyAccepts(f"no family accepts the layer {layer.name!r}, which leads its kind {layer.kind}")
        followers: list[tuple[Callable[..., list[Evaluation]], tuple[Any, ...]]] = []
        for members in kinds.values():
            proven = list(dict.fromkeys(
                (e.candidate.family, e.candidate.spec)
                for leader in members[:leads]
                for e in ParetoFront.of(record.of(leader.content_hash)).evaluations
            ))  # fmt: skip
            for layer in members:
                missing = [
                    (Candidate(layer.name, family, spec), twin_of(record, layer, Candidate("", family, spec), threads))
                    for family, spec in proven
                    if not _known(record, layer.content_hash, Candidate(layer.name, family, spec))
                ]
                # One task for each, so that a search that is stopped loses little.
                followers += [(follow, (layer, [one], threads)) for one in missing]
        for found in _run(pool, followers):
            keep(found)
    return {
        layer.name: ParetoFront.of(record.of(layer.content_hash), layer)
        for members in kinds.values()
        for layer in members
    }


def _known(record: Record, layer_hash: str, candidate: Candidate) -> bool:
    return any(e.candidate.hash == candidate.hash for e in record.of(layer_hash, candidate.family))


def _lead(
    layer: Layer, family: str, trials: int, seed: int, threads: int, space: Any, known: Sequence[Evaluation]
) -> list[Evaluation]:
    """A search of one family; nothing where the family has no structure for the layer."""
    record = Record()
    for evaluation in known:
        record.add(evaluation)
    try:
        search(
            layer, (family,), trials, seed, spaces={} if space is None else {family: space}, record=record,
            threads=threads,
        )  # fmt: skip
    except NoFamilyAccepts:
        return []
    return list(record)


def follow(
    layer: Layer, candidates: Sequence[tuple[Candidate, Evaluation | None]], threads: int = 1
) -> list[Evaluation]:
    """Candidates that were proven elsewhere, on this layer, with the latencies of their twins where they have one."""
    return [evaluate(layer, c.family, c.spec, threads=threads, twin=twin) for c, twin in candidates]


def _pool(workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    return ProcessPoolExecutor(workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,))


def _run(
    pool: ProcessPoolExecutor | None, tasks: Sequence[tuple[Callable[..., list[Evaluation]], tuple[Any, ...]]]
) -> Iterator[list[Evaluation]]:
    if pool is None:
        for function, arguments in tasks:
            yield function(*arguments)
        return
    futures: list[Future[list[Evaluation]]] = [pool.submit(function, *arguments) for function, arguments in tasks]
    for future in as_completed(futures):
        yield future.result()
