"""`search_model`: searches the layers of a whole model, in this process or in several that share an evaluation log.

One layer of each kind (rows, features, bias, dtype) leads; what lies on its front is fitted to the kind's others. They
share measured latencies, so that each structure is timed once per kind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from typing import Any

import torch

from basis_search.errors import BadInput
from basis_search.evaluation.pareto import ParetoFront
from basis_search.evaluation.timing import AUTO, clock_for
from basis_search.families import FAMILIES
from basis_search.layers.layer import Layer
from basis_search.study.loop import NoFamilyAccepts
from basis_search.study.settings import (
    TRIAL_SECONDS,
    SearchSettings,
    spaces_of,
)
from basis_search.study.transfer import kinds, leaders, search_layers
from basis_search.workers import subprocess_evaluator
from basis_search.workers.evaluation_log import Record
from basis_search.workers.placement import placed
from basis_search.workers.run_folder import RunFolder
from basis_search.workers.worker import PAUSE, Watcher, Worker

MEMORY_SHARE = 0.9
"""Share of the machine's memory that evaluating one candidate may take."""


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
    device: str | torch.device | None = None,
    clock: str = AUTO,
) -> dict[str, ParetoFront]:
    """Searches all layers of a model and returns the Pareto front of each, for `plan`.

    Candidates are evaluated in a child process, which takes seconds to start and knows only the families that
    `basis_search` loads: one that this process registers later is unknown there. A candidate that takes over 600 s or
    nine tenths of the machine's memory, or crashes, is a failed evaluation. When a worker dies, another one takes over
    the candidate that it was evaluating; nothing else is lost. To resume, call again with the same record.

    There are no `limits` here, unlike in `search`: the command line has them (`limits={flops: 0.6}`), and
    `basis_search.study.transfer.search_layers` takes them in its settings.

    Args:
        layers: as `capture` returns them.
        families: names of the families to search.
        trials: distinct specs per family on each leading layer.
        seed: of the samplers.
        leads: layers of each kind that are searched, the most sensitive ones; the others of the kind are given what
            lies on these layers' fronts.
        workers: processes that search at the same time; kernels are timed by one at a time. As with any use of
            `multiprocessing`, a script that asks for several guards its entry with `if __name__ == "__main__":`.
        threads: CPU threads with which kernels are timed.
        spaces: search spaces by family, where not the family's default `Space()`.
        record: of the evaluations; in memory if None. `record.of(layer.content_hash)` is the whole table of a layer.
        watch: called in this process with each new evaluation.
        device: where the layers run, "cpu", "cuda" or "cuda:1"; "cuda" gives worker N the GPU N modulo their number.
            None keeps each layer's own device.
        clock: the latency to minimise, as of `search`.

    Returns:
        By layer name, the non-dominated evaluations with this device and code.

    Raises:
        BadInput: no layer, an unknown family, a number below 1, or a device that is not there.
        DeviceLost: a BadInput; the GPU is gone. All evaluations so far are recorded.
        NoFamilyAccepts: a BadInput; a leading layer for which no family has a spec, or none that succeeded.
    """
    if leads < 1 or workers < 1:
        raise BadInput(f"leads is {leads} and workers is {workers}, but at least 1 of each is needed")
    layers = [layer for members in kinds(placed(layers, device)).values() for layer in members]
    settings = SearchSettings(spaces_of(families, spaces), trials, seed=seed)
    for layer in layers:
        clock_for(layer.device, clock)
    job = ModelSearch(layers, settings, leads, threads, device, clock)
    record = Record() if record is None else record
    if workers == 1:
        job.run(record, 0, watch)
    else:
        _run_in_processes(job, workers, record, watch)
    fronts = {layer.name: job.front(record, layer) for layer in layers}
    for layer in leaders(layers, leads):
        if not fronts[layer.name].evaluations:
            failures = [str(e.failure) for e in record.of(layer.content_hash)]
            raise NoFamilyAccepts(
                f"no candidate for the layer {layer.name!r}, which leads its kind {layer.kind}, was evaluated without "
                f"failure; the first failed: {failures[0]}"
            )
    return fronts


@dataclass(frozen=True)
class ModelSearch:
    """A search of a model, to be run by one or more workers; `device` and `clock` as of `search_model`."""

    layers: Sequence[Layer]
    settings: SearchSettings
    leads: int
    threads: int
    device: str | torch.device | None = None
    clock: str = AUTO

    def run(
        self, record: Record, number: int, watch: Watcher | None = None, stop: Callable[[], bool] = lambda: False
    ) -> None:
        """The whole search as worker `number` of those that share the record; what is in it is not done again."""

        def report(layer: Layer, found: ParetoFront | NoFamilyAccepts) -> None:
            if isinstance(found, NoFamilyAccepts):
                raise found

        memory = MEMORY_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        with subprocess_evaluator.SubprocessEvaluator(TRIAL_SECONDS, memory) as evaluate, record.leases.joined(number):
            worker = Worker(record, number, self.threads, evaluate, watch, clock=self.clock)
            layers = placed(self.layers, self.device, worker=number)
            search_layers(layers, self.settings, worker, stop, leads=self.leads, report=report)

    def front(self, record: Record, layer: Layer) -> ParetoFront:
        """The layer's front among the evaluations with this device and code."""
        worker = Worker(record, threads=self.threads, clock=self.clock)
        front = ParetoFront.of(worker.evaluations_of(layer), layer)
        if record.fitted is not None:
            record.fitted.offer_stored(front.evaluations)
        return front


def _portable(layer: Layer) -> Layer:
    """The layer with its tensors on the CPU: another process would keep a GPU's memory of this one in use."""
    if all(tensor.device.type == "cpu" for tensor in layer.tensors.values()):
        return layer
    return layer.moved(lambda tensor: tensor.cpu())


def _run_in_processes(job: ModelSearch, workers: int, record: Record, watch: Watcher | None) -> None:
    """Runs the search in `workers` processes on one evaluation log; this process finishes what dead ones left."""
    with tempfile.TemporaryDirectory() as folder:
        job = dataclasses.replace(
            job,
            layers=[_portable(layer) for layer in job.layers],
            settings=dataclasses.replace(job.settings, storage=RunFolder(folder).studies_file),
        )
        shared = record
        if not record.leases.shared:
            shared = Record(RunFolder(folder).evaluations_file)
            shared.fitted = record.fitted
            for evaluation in record:
                shared.add(evaluation)
        published = len(shared)

        def publish() -> None:
            nonlocal published
            shared.refresh()
            for evaluation in list(islice(shared, published, None)):
                published += 1
                if shared is not record:
                    record.add(evaluation)
                if watch is not None:
                    watch(evaluation)

        with _started(job, shared, workers) as processes:
            while alive := [process.sentinel for process in processes if process.is_alive()]:
                wait(alive, PAUSE)
                publish()
        if any(process.exitcode != 0 for process in processes):
            job.run(shared, workers, lambda evaluation: publish())
        publish()


@contextlib.contextmanager
def _started(job: ModelSearch, record: Record, workers: int) -> Iterator[list[SpawnProcess]]:
    """The workers' processes; those still alive at the end are terminated."""
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    processes = [context.Process(target=_work, args=(job, record, n, os.getpid())) for n in range(workers)]
    try:
        for process in processes:
            process.start()
        yield processes
    finally:
        for process in processes:
            if process.pid is not None:
                process.terminate()
                process.join()


def _work(job: ModelSearch, record: Record, number: int, parent: int) -> None:
    """One worker's process, which stops after an evaluation at whose end its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the child that fits: as many workers as were asked for do
    torch.set_num_threads(1)
    try:
        job.run(record, number, stop=lambda: os.getppid() != parent)
    except BadInput:
        sys.exit(1)  # the parent meets it, too, and raises it
