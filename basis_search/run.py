"""A run: its folder, its search over many layers, and what is written when the last worker ends."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from tqdm import tqdm

from basis_search import child, report, storages, tracking, watching
from basis_search.assign import Plan, plan
from basis_search.captured import Layers, digest
from basis_search.config import SearchConfig
from basis_search.database import Database
from basis_search.database_record import DatabaseRecord
from basis_search.errors import BadInput
from basis_search.evaluate import Evaluation
from basis_search.export import save_plan
from basis_search.layer import Layer
from basis_search.pareto import ParetoFront
from basis_search.record import Record
from basis_search.storage import check_version, read_json, write_json
from basis_search.studies import quiet
from basis_search.study import NoFamilyAccepts, search
from basis_search.timing import fingerprint
from basis_search.version import code_version

SCHEMA_VERSION = 1


class Interrupt:
    """First Ctrl-C: stop after the evaluation at hand. Second: at once."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print(
            "\nstopping after this evaluation; what was found is kept, and the same command goes on from there "
            "(Ctrl-C again stops at once)",
            file=sys.stderr,
        )

    @contextlib.contextmanager
    def armed(self) -> Iterator[Interrupt]:
        before = {}
        with contextlib.suppress(ValueError):  # not the main thread: whoever runs us handles signals
            before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run_search(config: SearchConfig, config_text: str) -> Path:
    """Searches all selected layers as one worker, and finishes the run if no other worker is still at it.

    Args:
        config: checked.
        config_text: YAML as hydra resolved it, kept in the folder.

    Raises:
        BadInput: the layers cannot be read, the folder cannot be written, or it belongs to another search.
    """
    storage = storages.resolve(config.storage, Path(config.run) / "studies.journal")
    layers = Layers.load(config.layers).select(config.select)
    run = _open_folder(Path(config.run), config_text)
    quiet()
    record = open_record(run, storage, config.cache)
    with (
        Interrupt().armed() as stop,
        record.claims.at_work(config.worker, {"layers": digest(Path(config.layers))}) as others,
        child.Judge(config.trial_seconds, config.trial_memory) as judge,
        tracking.start(config.tracking, run, dataclasses.asdict(config), record) as tracker,
    ):
        if config.worker in others:
            print(f"worker {config.worker} is at work already: give each its own number with worker=N", file=sys.stderr)
        fronts = _search_all(config, layers, run, storage, record, tracker, stop, judge)
        print(f"{_counted(record)}, in {run}")
        if record.claims.last():
            plans = finish(run, layers, record, config)
            tracker.finish(fronts, plans, run / "export")
        else:
            print("other workers are still searching; the last one writes fronts, plans and report")
    return run


def _counted(record: Record) -> str:
    """How many candidates went to the end, failed, or were stopped, and at which rung."""
    stopped = Counter(e.stopped for e in record if e.stopped)
    failures = sum(e.failure is not None and not e.stopped for e in record)
    text = f"{len(record) - stopped.total()} evaluations, {failures} of them failures"
    if stopped:
        rungs = ", ".join(f"{count} by {rung}" for rung, count in sorted(stopped.items()))
        text += f"; {stopped.total()} candidates stopped early ({rungs})"
    return text


def _earlier(folder: Path) -> Record:
    """What an earlier run found.

    Raises:
        BadInput: the folder holds no evaluations.
    """
    path = folder / "evaluations.jsonl"
    if not path.is_file():
        raise BadInput(f"{folder} holds no evaluations.jsonl to start from; name folders of earlier runs in warm")
    return Record(path)


def open_record(run: Path, storage: storages.Location, cache: str | None = None) -> Record:
    """The run's evaluations: in its database where it has one, with a copy in the folder, else in the folder alone."""
    path = run / "evaluations.jsonl"
    if not storages.is_database(storage):
        return Record(path, None if cache is None else Path(cache).expanduser())
    return DatabaseRecord(Database(str(storage)), run.resolve().name, path)


def _search_all(
    config: SearchConfig,
    layers: Layers,
    run: Path,
    storage: storages.Location,
    record: Record,
    tracker: tracking.Tracker,
    stop: Interrupt,
    judge: child.Judge,
) -> dict[str, ParetoFront]:
    fronts: dict[str, ParetoFront] = {}
    per_layer = config.total or sum(
        1 if not dataclasses.fields(config.spaces[name]) else config.trials for name in config.families
    )
    warm = [e for folder in config.warm for e in _earlier(Path(folder))]
    with (
        watching.screen(run, config.worker) as screen,
        tqdm(total=per_layer * len(layers), unit="evaluation", desc="search", disable=screen is not None) as bar,
    ):
        say = tqdm.write if screen is None else screen.say

        def watch(evaluation: Evaluation) -> None:
            name = evaluation.candidate.layer
            fronts[name] = fronts.get(name, ParetoFront()).add(evaluation)
            tracker.evaluation(evaluation, fronts)
            bar.set_postfix_str(f"{name} {evaluation.candidate.family}", refresh=False)
            bar.update()
            if screen is not None:
                screen.update()

        def one(layer: Layer, families: Sequence[str], wait: bool) -> None:
            front = search(
                layer, families, config.trials, config.seed, storage, spaces=config.spaces, record=record, watch=watch,
                stop=stop, worker=config.worker, threads=config.threads, judge=judge, wait=wait, total=config.total,
                sampler=config.sampler, limits=config.limits, warm=warm,
                reproducible=config.reproducible,
            )  # fmt: skip
            if front.evaluations:
                fronts[layer.name] = front

        for count, layer in enumerate(layers, start=1):
            try:
                one(layer, config.families, wait=False)
            except NoFamilyAccepts as reason:
                say(f"{reason}; it stays as it is")
            if stop():
                return fronts
            bar.update(per_layer * count - bar.n)  # what was known already, or exhausted early
        for layer in layers:  # what the other workers still had in hand: theirs, unless they die over it
            left = [f for f in config.families if record.claims.of_others(layer.content_hash, f)]
            if left and not stop():
                one(layer, config.families if config.total else left, wait=True)
    return fronts


def finish(run: Path, layers: Layers, record: Record, config: SearchConfig) -> list[Plan]:
    """Writes front.json, plans.json, the exported plans and the report from what the record holds."""
    record.refresh()
    fronts = {}
    for layer in layers:
        device = fingerprint(layer.device, config.threads)
        front = ParetoFront.of(record.of(layer.content_hash, device=device, code=code_version()), layer)
        if front.evaluations:
            fronts[layer.name] = front
    if elsewhere := {e.device for e in record} - {fingerprint(layer.device, config.threads) for layer in layers}:
        names = ", ".join(sorted(device.name for device in elsewhere))
        print(f"kept in the record, but on no front, as latencies hold for one device alone: what {names} measured")
    if not fronts:
        print("nothing was evaluated yet: no front, no plan")
        return []
    write_fronts(run, fronts)
    plans = []
    for quantity, limits in config.budgets.items():
        for limit in limits:
            try:
                plans.append(plan(fronts, {quantity: limit}))
            except BadInput as problem:
                print(f"no plan: {problem}")
    write_json(run / "plans.json", {"schema_version": SCHEMA_VERSION, "plans": [p.to_json() for p in plans]})
    if config.export:
        for chosen in tqdm(plans, desc="export", unit="plan"):
            save_plan(chosen, run / "export" / chosen.name, provenance={"run": run.name, "seed": config.seed})
    if config.report:
        print(f"report: {report.write(run)}")
    return plans


def write_fronts(run: Path, fronts: Mapping[str, ParetoFront]) -> None:
    """front.json: the non-dominated evaluations of each layer."""
    document = {name: [e.to_json() for e in front.evaluations] for name, front in fronts.items()}
    write_json(run / "front.json", {"schema_version": SCHEMA_VERSION, "layers": document})


def read_fronts(run: Path) -> dict[str, ParetoFront]:
    """What `write_fronts` wrote, without the layers' tensors.

    Raises:
        BadInput: the folder holds no front, or one of a newer version.
    """
    path = run / "front.json"
    if not path.is_file():
        raise BadInput(f"{run} is no finished run: it holds no front.json; name a folder that a search wrote")
    layers = _versioned(path)["layers"]
    return {
        name: ParetoFront(tuple(Evaluation.from_json(e) for e in evaluations)) for name, evaluations in layers.items()
    }


def read_plans(run: Path, layers: Layers) -> list[Plan]:
    """The plans that a run found, tied to the captured layers so that they can be applied.

    Raises:
        BadInput: the folder holds no plans, or they were not written by basis_search.
    """
    path = run / "plans.json"
    if not path.is_file():
        raise BadInput(f"{run} is no finished run: it holds no plans.json; name a folder that a search wrote")
    return [Plan.from_json(data, layers) for data in _versioned(path)["plans"]]


def _versioned(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = read_json(path)
    check_version(document, SCHEMA_VERSION, path)
    return document


def _open_folder(run: Path, config_text: str) -> Path:
    """Makes the folder; `latest` beside it points to it."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        path = run / "config.yaml"
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


def export_run(run: Path, budget: Mapping[str, float], out: Path, layers: Path | None = None) -> Plan:
    """Plans for a budget from a finished run's fronts, fits the choices again and writes them to `out`.

    Raises:
        BadInput: not a finished run, its captured layers are gone or changed, or nothing meets the budget.
    """
    fronts = read_fronts(run)
    chosen = plan(fronts, budget)
    save_plan(chosen, out, Layers.load(layers or _layers_of(run)), provenance={"run": run.name})
    return chosen


def _layers_of(run: Path) -> Path:
    """Where the run's config says that its captured layers lie."""
    path = run / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as problem:
        raise BadInput(f"{path} cannot be read ({problem}); pass the captured layers with --layers DIR") from problem
    directory = config.get("layers") if isinstance(config, dict) else None
    if not isinstance(directory, str) or not Path(directory).is_dir():
        raise BadInput(
            f"the captured layers {directory!r} that {path} names are not there; pass them with --layers DIR"
        )
    return Path(directory)
