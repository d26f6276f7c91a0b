"""Show the search in a run folder while it runs: on worker 0's terminal, and by `basis-search watch` on any other."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import torch
from rich.console import Console
from rich.live import Live

from basis_search.errors import BadInput
from basis_search.families import FAMILIES
from basis_search.files import new_lines, place_of, read_json
from basis_search.layers.collection import matches
from basis_search.layers.layer import Layer
from basis_search.monitor.progress import SearchProgress, render
from basis_search.planning.budget import max_latency_of
from basis_search.study.proposals import accepts
from basis_search.workers.evaluation_log import Entry, json_value
from basis_search.workers.liveness import HEARTBEAT_SECONDS, DeathCheck
from basis_search.workers.run_folder import RunFolder

REDRAW_SECONDS = 1.0


class RunReader:
    """Reads the files of a run folder as they grow. It writes nothing, so it may read other people's runs.

    Raises:
        BadInput: there is no such folder, or it is no run folder.
    """

    def __init__(self, run: Path):
        self.folder = RunFolder(run)
        self.folder.check()
        config = self.folder.config() if self.folder.config_file.is_file() else {}
        self.progress = SearchProgress(run.resolve().name, _budgets(config), _total(config), max_latency_of(config))
        self._position = 0
        self._is_dead = DeathCheck()

    def update(self) -> SearchProgress:
        """The progress, with all lines that were written since the last call."""
        lines, self._position = new_lines(self.folder.evaluations_file, self._position)
        for line in lines:
            try:
                entry = Entry.from_json(json_value(line))
            except BadInput as problem:
                raise BadInput(f"{place_of(self.folder.evaluations_file, line)}: {problem}") from problem
            self.progress.add(entry.evaluation, entry.worker, entry.started, entry.finished)
        self._workers()
        return self.progress

    @property
    def over(self) -> bool:
        """The last worker has written the fronts, and no worker is busy."""
        front, lines = self.folder.front_file, self.folder.evaluations_file
        done = front.is_file() and lines.is_file() and front.stat().st_mtime_ns >= lines.stat().st_mtime_ns
        return done and not any(worker.activity for worker in self.progress.workers.values())

    def _workers(self) -> None:
        """Updates what each worker evaluates and which are silent, from the leases."""
        for shown in self.progress.workers.values():
            shown.activity, shown.silent = "", False
        path = self.folder.leases_file
        if not path.is_file():
            return
        state = read_json(path)
        workers, claims = (state.get(key) if isinstance(state, dict) else None for key in ("workers", "claims"))
        if not isinstance(workers, dict) or not isinstance(claims, dict):
            return
        layers = {e.layer_hash: e.candidate.layer for front in self.progress.fronts.values() for e in front.evaluations}
        for name, worker in workers.items():
            if not isinstance(worker, dict) or not isinstance(worker.get("number"), int):
                continue
            shown = self.progress.workers[worker["number"]]
            shown.activity = "busy" if worker.get("busy") else "finishing"
            shown.silent = self._is_dead(name, worker, time.monotonic() / HEARTBEAT_SECONDS)
            for claim in claims.values():
                if isinstance(claim, dict) and claim.get("worker") == name:
                    spec = claim.get("spec")
                    what = ", ".join(f"{k}={v}" for k, v in spec.items()) if isinstance(spec, dict) else ""
                    layer = layers.get(str(claim.get("layer_hash")), "a layer without evaluations yet")
                    shown.activity = f"{layer}: {claim.get('family')} {what}".strip()


class Screen:
    """A live display, redrawn between evaluations only, and so rarely that it takes at most 1 % of the time."""

    def __init__(self, reader: RunReader, console: Console):
        self._reader, self._ready = reader, 0.0
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        with contextlib.suppress(BadInput):
            self._live.update(render(self._reader.update(), replan=True), refresh=True)  # remains on the terminal
        self._live.__exit__(*exception)

    def update(self) -> None:
        """Draws the run folder's progress if a redraw is due."""
        begun = time.perf_counter()
        if begun < self._ready:
            return
        try:
            self._live.update(render(self._reader.update()), refresh=True)
        except BadInput as problem:  # the search itself decides whether it can go on
            self.print(f"the display has stopped: {problem}")
            begun = math.inf
        self._ready = begun + max(REDRAW_SECONDS, 100 * (time.perf_counter() - begun))

    def print(self, sentence: str) -> None:
        """A line above the display."""
        self._live.console.print(sentence, markup=False, highlight=False)


@contextlib.contextmanager
def screen(run: Path, worker: int) -> Iterator[Screen | None]:
    """The display of a search: worker 0 shows all workers if stderr is a terminal; None for the others."""
    console = Console(stderr=True)
    if worker != 0 or not console.is_terminal:
        yield None
        return
    with Screen(RunReader(run), console) as shown:
        yield shown


def watch(run: Path, every: float = 2.0, once: bool = False, console: Console | None = None) -> None:
    """Shows the search until it is over or Ctrl-C is pressed; prints once if `once` or where there is no terminal.

    Raises:
        BadInput: no run folder, or `every` is not above 0.
    """
    if not every > 0:
        raise BadInput(f"every is {every}, but a number of seconds above 0 is needed, such as 2")
    console = Console() if console is None else console
    reader = RunReader(run)
    if once or not console.is_terminal:
        console.print(render(reader.update(), replan=True))
        return
    with Live(render(reader.update()), console=console, auto_refresh=False) as live:
        while not reader.over:
            time.sleep(every)
            live.update(render(reader.update()), refresh=True)
        live.update(render(reader.progress, replan=True), refresh=True)


def _budgets(config: dict[str, Any]) -> dict[str, list[float]]:
    budgets = config.get("budgets")
    if not isinstance(budgets, dict):
        return {}
    numbers = {q: [v for v in limits if isinstance(v, int | float)] for q, limits in budgets.items() if limits}
    return {str(q): limits for q, limits in numbers.items() if limits}


def _total(config: dict[str, Any]) -> int | None:
    """The largest number of evaluations of the search, if its captured layers can be counted."""
    families, trials, directory = (config.get(key) for key in ("families", "trials", "layers"))
    if not isinstance(families, list) or not isinstance(trials, int) or not isinstance(directory, str):
        return None
    if config.get("leads") is not None or config.get("groups"):
        return None  # how many transferred specs there are depends on the fronts
    try:
        entries = read_json(Path(directory) / "layers.json")["layers"]
        select = config.get("select") or ["re:.*"]
        exclude = config.get("exclude") or []
        layers = sum(matches(entry["name"], select) and not matches(entry["name"], exclude) for entry in entries)
    except (BadInput, KeyError, TypeError):
        return None
    if isinstance(config.get("total"), int):
        return layers * int(config["total"])
    return layers * sum(
        trials if dataclasses.fields(FAMILIES[name].Space) else 1
        for name in families
        if name in FAMILIES and accepts(_small_layer(config), name, FAMILIES[name].Space())
    )


def _small_layer(config: dict[str, Any]) -> Layer:
    """A layer on the device and in the dtype of the search, for families that run on some devices only."""
    device = torch.device("cuda" if str(config.get("device")).startswith("cuda") else "cpu")
    dtype = getattr(torch, str(config.get("dtype")), None)
    known = dtype if isinstance(dtype, torch.dtype) else torch.float32
    return Layer("small", torch.eye(64), None, torch.eye(64), torch.eye(64), 1, known, device)
