"""`basis-search search`: opens a run folder and searches its layers as one of the workers that share it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import yaml
from tqdm import tqdm

from basis_search.config import SearchConfig
from basis_search.errors import BadInput
from basis_search.evaluation.candidate import Evaluation
from basis_search.evaluation.pareto import ParetoFront
from basis_search.evaluation.timing import clock_for
from basis_search.layers.collection import Layers, digest
from basis_search.layers.layer import Layer
from basis_search.monitor import wandb_logger
from basis_search.monitor import watch as watching
from basis_search.monitor.tracker import Tracker
from basis_search.planning.groups import grouped
from basis_search.run.finish import finish
from basis_search.study import optuna_storage
from basis_search.study.loop import NoFamilyAccepts
from basis_search.study.proposals import accepts
from basis_search.study.settings import SearchSettings, spaces_of
from basis_search.study.transfer import leaders, search_layers
from basis_search.workers import subprocess_evaluator
from basis_search.workers.evaluation_log import Record, open_log
from basis_search.workers.placement import placed
from basis_search.workers.postgres import Database
from basis_search.workers.postgres_log import DatabaseRecord
from basis_search.workers.run_folder import RunFolder
from basis_search.workers.worker import Worker

WARM_HINT = "name folders of earlier runs in warm"


class Interrupt:
    """Stops a search: after the current evaluation on the first Ctrl-C or SIGTERM, at once on the second."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self) -> bool:
        return self.requested

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print(
            "\nstopping after this evaluation; the same command resumes the search (Ctrl-C again stops at once)",
            file=sys.stderr,
        )

    @contextlib.contextmanager
    def armed(self) -> Iterator[Interrupt]:
        """Handles the signals inside."""
        before = {}
        with contextlib.suppress(ValueError):  # not the main thread, which handles signals
            before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclasses.dataclass(frozen=True)
class _Run:
    """What one worker of a run has open."""

    folder: Path
    layers: Layers
    record: Record
    evaluate: subprocess_evaluator.SubprocessEvaluator
    tracker: Tracker
    stop: Interrupt


def run_search(config: SearchConfig, config_text: str) -> Path:
    """Searches all selected layers as one worker, and finishes the run unless other workers are still searching.

    Args:
        config: checked.
        config_text: YAML as hydra resolved it, stored in the folder.

    Returns:
        The run folder.

    Raises:
        BadInput: the layers cannot be read, the folder cannot be written, or it belongs to another search.
    """
    storage = optuna_storage.resolve(config.storage, RunFolder(config.run).studies_file)
    layers = Layers.load(config.layers).select(config.select, config.exclude)
    layers = Layers(tuple(placed(layers, config.device, config.dtype, config.worker)))
    for layer in layers:
        clock_for(layer.device, config.clock)
    grouped(layers.names, config.groups)  # reports a bad pattern before any work
    search_settings = _search_settings(config, storage)
    folder = _open_folder(Path(config.run), config_text)
    record = open_record(folder, storage, config.cache)
    with (
        Interrupt().armed() as stop,
        record.leases.joined(config.worker, {"layers": digest(Path(config.layers))}) as others,
        subprocess_evaluator.SubprocessEvaluator(
            config.trial_seconds, config.trial_memory, fit_on_cpu=config.fit_on_cpu
        ) as evaluate,
        wandb_logger.start(config.tracking, folder, dataclasses.asdict(config), record) as tracker,
    ):
        if differences := _differences(folder, config_text):
            print(differences, file=sys.stderr)
        if config.worker in others:
            print(f"another worker {config.worker} is running: give each its own number with worker=N", file=sys.stderr)
        run = _Run(folder, layers, record, evaluate, tracker, stop)
        fronts = _search_all(config, search_settings, run)
        if differences and _differences(folder, config_text):  # another worker with the same may have been quicker
            RunFolder(folder).replace_config(config_text)
        print(f"{_counted(record)}, in {folder}")
        if record.leases.finish_as_last():
            plans = finish(folder, layers, record, config)
            tracker.finish(fronts, plans, RunFolder(folder).exports)
        else:
            print("other workers are still searching; the last one writes fronts, plans and report")
    return folder


def _search_settings(config: SearchConfig, storage: optuna_storage.Location) -> SearchSettings:
    return SearchSettings(
        spaces=spaces_of(config.families, config.spaces),
        trials=config.trials,
        total=config.total,
        seed=config.seed,
        sampler=config.sampler,
        limits=config.limits,
        warm=tuple(e for run in config.warm for e in open_log(RunFolder(run), "to start from", WARM_HINT)),
        reproducible=config.reproducible,
        storage=storage,
    )


def _counted(record: Record) -> str:
    """Numbers of evaluations, of failures, and of candidates stopped early at each stage."""
    stopped = Counter(e.stopped for e in record if e.stopped)
    failures = sum(e.failure is not None and not e.stopped for e in record)
    text = f"{len(record) - stopped.total()} evaluations, {failures} of them failures"
    if stopped:
        stages = ", ".join(f"{count} by {stage}" for stage, count in sorted(stopped.items()))
        text += f"; {stopped.total()} candidates stopped early ({stages})"
    return text


def open_record(run: Path, storage: optuna_storage.Location, cache: str | None = None) -> Record:
    """The run's evaluations: in its database, with a copy in the folder, or without a database in the folder alone."""
    path = RunFolder(run).evaluations_file
    if not optuna_storage.is_database(storage):
        return Record(path, None if cache is None else Path(cache).expanduser())
    return DatabaseRecord(Database(str(storage)), run.resolve().name, path)


def _search_all(config: SearchConfig, search_settings: SearchSettings, run: _Run) -> dict[str, ParetoFront]:
    """Searches the layers, with a progress bar or screen; returns the fronts by layer."""
    fronts: dict[str, ParetoFront] = {}
    expected = {
        layer.name: _trials(config, search_settings, layer) for layer in leaders(list(run.layers), config.leads)
    }
    left, total = set(expected), sum(expected.values())
    with (
        watching.screen(run.folder, config.worker) as screen,
        tqdm(total=total, unit="evaluation", desc="search", disable=screen is not None) as bar,
    ):
        say = tqdm.write if screen is None else screen.print

        def watch(evaluation: Evaluation) -> None:
            name = evaluation.candidate.layer
            fronts[name] = fronts.get(name, ParetoFront()).add(evaluation)
            run.tracker.evaluation(evaluation, fronts)
            bar.set_postfix_str(f"{name} {evaluation.candidate.family}", refresh=False)
            bar.update()
            if screen is not None:
                screen.update()

        def report(layer: Layer, found: ParetoFront | NoFamilyAccepts) -> None:
            if isinstance(found, NoFamilyAccepts):
                say(f"{found}; it stays dense")
            elif found.evaluations:
                fronts[layer.name] = found
            if not run.stop() and left:
                left.discard(layer.name)
                remaining = sum(expected[name] for name in left)
                bar.update(total - remaining - bar.n)  # what was known already, or exhausted early
                bar.total = bar.total if left else None  # how many follow depends on what was found

        worker = Worker(run.record, config.worker, config.threads, run.evaluate, watch, clock=config.clock)
        groups = [[run.layers[name] for name in names] for names in grouped(run.layers.names, config.groups)]
        search_layers(
            list(run.layers), search_settings, worker, run.stop, leads=config.leads, groups=groups, report=report
        )
    return fronts


def _trials(config: SearchConfig, settings: SearchSettings, layer: Layer) -> int:
    """The largest number of trials on the layer."""
    spaces = (space for family, space in settings.spaces.items() if accepts(layer, family, space))
    return config.total or sum(config.trials if dataclasses.fields(space) else 1 for space in spaces)


def _open_folder(run: Path, config_text: str) -> Path:
    """Makes the folder, and a link `latest` next to it."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        path = RunFolder(run).config_file
        if not path.exists():
            path.write_text(config_text)
        link = run.parent / "latest"
        temporary = run.parent / f".latest.{os.getpid()}"
        temporary.symlink_to(run.name)
        temporary.replace(link)
    except OSError as problem:
        raise BadInput(
            f"the run folder {run} cannot be written: {problem.strerror}; name another with run=DIR"
        ) from problem
    return run


def _differences(run: Path, config_text: str) -> str:
    """A sentence on the settings that differ from those that the folder was begun with; empty if none does."""
    begun, now = RunFolder(run).config(), yaml.safe_load(config_text)
    changed = [key for key in now if key != "worker" and now[key] != begun.get(key)]
    before, after = (", ".join(f"{key}={config.get(key)}" for key in changed) for config in (begun, now))
    return f"{run} was begun with {before}; it goes on with {after}" if changed else ""
