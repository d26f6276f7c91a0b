"""A search told to wandb, offline or online, if the user asks for it; never the reason why a search stops."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from basis_search.errors import BadInput, near_miss
from basis_search.evaluation.evaluate import Evaluation
from basis_search.evaluation.pareto import ParetoFront
from basis_search.files import without_addresses
from basis_search.monitor.table import COLUMNS, row
from basis_search.monitor.timeouts import Answer, Line
from basis_search.planning.plan import Plan
from basis_search.report import figures
from basis_search.workers.evaluation_log import Record

MODES = ("off", "offline", "online")
INIT_SECONDS, START_SECONDS, CALL_SECONDS, FINISH_SECONDS = 20.0, 90.0, 20.0, 60.0
"""How long a search waits for wandb: for the server's run, for all of its start, for one call (a table asks the
server), for what is left to be sent at the end."""
FIRST_TABLE, TABLE_GROWTH = 20, 1.5
"""wandb's tables cannot be changed once logged: each new one is this much longer, so all together stay linear."""
SHARE = 0.01
"""Of the search's wall time that tables may take while it goes; one that is due waits until they have taken less."""
LAYERS_PLOTTED = 64

Fronts = Mapping[str, ParetoFront]


class Tracker:
    """What a search tells while it goes; this one keeps it to itself."""

    seconds = 0.0
    """Wall time that the search has waited for its tracking so far."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the tracking, also of a search that failed."""

    def evaluation(self, evaluation: Evaluation, fronts: Fronts) -> None:
        """A new evaluation, and the fronts that it may now be part of."""

    def finish(self, fronts: Fronts, plans: Sequence[Plan], exports: Path | None = None) -> None:
        """The search is over; `exports` is the folder of exported plans."""


def start(mode: str, run: Path, config: Mapping[str, Any], record: Iterable[Evaluation] | None = None) -> Tracker:
    """A tracker for one worker of the search in the folder `run`, to be used in a `with` statement.

    Args:
        mode: "off" (nothing is imported), "offline" (files under run/wandb, no account needed) or "online".
        run: the run folder; the same folder goes on under the same wandb id.
        config: of the search; shown as the run's config, URLs without what follows the scheme.
        record: the search's evaluations, gone through at the start and at the end; by default those in the run folder.

    Raises:
        BadInput: an unknown mode.
    """
    if mode not in MODES:
        raise BadInput(f"there is no tracking {mode!r}{near_miss(str(mode), MODES)}")
    return Tracker() if mode == "off" else WandbTracker(mode, Path(run), config, record)


def run_id(run: Path, worker: int) -> str:
    """The wandb id of a worker of a run folder on this machine: always the same, so that it can be resumed."""
    digest = hashlib.sha256(f"{platform.node()} {run.resolve()}".encode()).hexdigest()[:12]
    return f"{re.sub(r'[^A-Za-z0-9_-]', '-', run.resolve().name)[:40]}-{digest}-{worker}"


class WandbTracker(Tracker):
    """One wandb run: evaluations and fronts as tables and plots, hypervolume over trials, exported plans as artifact.

    The first problem that wandb has is said on stderr, and tracking ends there; the search goes on.
    """

    def __init__(self, mode: str, run: Path, config: Mapping[str, Any], record: Iterable[Evaluation] | None = None):
        self._mode, self._folder, self._config, self._record = mode, run, config, record
        self._wandb: Any = None
        self._run: Any = None
        self._rows: list[list[Any]] = []
        self._fronts: dict[str, ParetoFront] = {}
        self._volumes: dict[str, float] = {}
        self._keys: list[tuple[str, str]] = []  # of the rows: layer, candidate
        self._next_table = FIRST_TABLE
        self.seconds, self._table_seconds, self._begun = 0.0, 0.0, time.perf_counter()
        self._line = Line()
        self._opening: Answer | None = None

    def __enter__(self) -> Self:
        with self._guarded("start"):
            for evaluation in self._known():  # of the search that is resumed
                self._keep(evaluation)
            self._next_table = max(FIRST_TABLE, int(len(self._rows) * TABLE_GROWTH))
            self._opening = self._line.begin(self._open)  # while the search makes its first evaluation
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_open():
            return
        with self._guarded("finish"):
            if len(self._rows) > 0 and self._next_table != 0:
                self._line.call(self._log_evaluations, CALL_SECONDS)
            self._run.summary["tracking_seconds"] = round(self.seconds, 3)
            self._line.call(lambda: self._run.finish(exit_code=0 if kind is None else 1), FINISH_SECONDS + CALL_SECONDS)
            if self._mode == "offline":
                print(f"wandb: recorded under {self._folder / 'wandb'}; `wandb sync` sends it")

    def evaluation(self, evaluation: Evaluation, fronts: Fronts) -> None:
        if not self._is_open():
            return
        with self._guarded("log"):
            layer = evaluation.candidate.layer
            self._keep(evaluation, fronts.get(layer))
            told: dict[str, Any] = {
                "trial": len(self._rows),
                "failed": int(evaluation.failure is not None and not evaluation.stopped),
                "stopped": int(bool(evaluation.stopped)),
            }
            if layer in self._volumes:
                told[f"hypervolume/{layer}"] = self._volumes[layer]
                told["hypervolume"] = sum(self._volumes.values()) / len(self._volumes)
            if evaluation.failure is None:
                told |= dict(zip(("error", "flops_ratio", "latency_ratio"), evaluation.objectives, strict=True))
            told |= {f"seconds/{part}": seconds for part, seconds in evaluation.seconds.items()}
            begun = time.perf_counter()
            due = len(self._rows) >= self._next_table and self._table_seconds <= SHARE * (begun - self._begun)
            self._line.call(lambda: self._log(told, due), CALL_SECONDS)
            if due:
                self._table_seconds += time.perf_counter() - begun
                self._next_table = int(len(self._rows) * TABLE_GROWTH)

    def finish(self, fronts: Fronts, plans: Sequence[Plan], exports: Path | None = None) -> None:
        if not self._is_open():
            return
        with self._guarded("finish"):
            known = {*self._keys}  # what other workers found meanwhile is this search's as well
            for e in self._known():
                if (e.candidate.layer, e.candidate.hash) not in known:
                    self._keep(e)
            for step in (
                self._log_evaluations,
                self._log_fronts,
                lambda: self._log_plans(plans),
                lambda: self._log_summary(plans),
                lambda: self._log_artifact(exports),
            ):
                self._line.call(step, CALL_SECONDS)
            self._next_table = 0  # that was the last

    def _is_open(self) -> bool:
        """Whether there is a run to tell; waits for its start."""
        if self._opening is not None:
            opening, self._opening = self._opening, None
            with self._guarded("start"):
                self._line.wait(opening, START_SECONDS)
        return self._run is not None

    @contextlib.contextmanager
    def _guarded(self, doing: str) -> Iterator[None]:
        """Whatever wandb raises is said once and ends the tracking; the time it takes is kept."""
        begun = time.perf_counter()
        try:
            yield
        except Exception as problem:  # wandb raises what it likes; none of it may reach the search
            self._run = None
            print(f"wandb failed to {doing} ({type(problem).__name__}: {problem}); the search goes on without it",
                  file=sys.stderr)  # fmt: skip
        finally:
            self.seconds += time.perf_counter() - begun

    def _open(self) -> None:
        import wandb

        self._wandb = wandb
        if self._mode == "online" and not wandb.login(prompt=False, verify=False):
            self._offline_instead("nobody is logged in; `wandb login` does that")
        try:
            self._run = self._init()
        except Exception as problem:
            if self._mode == "offline":
                raise
            self._offline_instead(f"the server gives no run ({type(problem).__name__}: {problem})")
            wandb.teardown()  # its service still holds the id for the run that failed
            self._run = self._init()
        self._run.define_metric("trial")
        self._run.define_metric("*", step_metric="trial")
        wandb.Table(columns=["trial"], data=[[0]])  # the first one imports for half a second; later the search waits

    def _offline_instead(self, reason: str) -> None:
        self._mode = "offline"
        print(f"wandb: {reason}; recording offline under {self._folder / 'wandb'}", file=sys.stderr)

    def _init(self) -> Any:
        worker = int(self._config.get("worker") or 0)
        return self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", "basis_search"),
            dir=self._folder,
            id=run_id(self._folder, worker),
            name=f"{self._folder.resolve().name}, worker {worker}",
            group=self._folder.resolve().name,  # the search: its workers' runs stand together
            job_type="search",
            config=without_addresses(self._config),
            mode=self._mode,
            resume="allow",
            settings=self._wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                x_disable_stats=True,  # a sampler beside the clock would disturb it
                x_save_requirements=False,
                init_timeout=INIT_SECONDS,
                finish_timeout=FINISH_SECONDS,
            ),
        )

    def _known(self) -> Iterable[Evaluation]:
        return Record(self._folder / "evaluations.jsonl") if self._record is None else self._record

    def _keep(self, evaluation: Evaluation, front: ParetoFront | None = None) -> None:
        layer = evaluation.candidate.layer
        self._rows.append(row(len(self._rows) + 1, evaluation))
        self._keys.append((layer, evaluation.candidate.hash))
        before = self._fronts.get(layer, ParetoFront())
        after = before.add(evaluation) if front is None else before.merge(front)  # it is part of what is on `front`
        if after != before:
            self._fronts[layer], self._volumes[layer] = after, after.hypervolume()

    def _log(self, told: Mapping[str, Any], with_table: bool) -> None:
        self._run.log(told)
        if with_table:
            self._log_evaluations()

    def _log_evaluations(self) -> None:
        self._mark_fronts()
        table = self._wandb.Table(columns=list(COLUMNS), data=self._rows)
        self._run.log({"trial": len(self._rows), "evaluations": table})

    def _mark_fronts(self) -> None:
        on_front = {(name, e.candidate.hash) for name, front in self._fronts.items() for e in front.evaluations}
        for told, key in zip(self._rows, self._keys, strict=True):
            told[COLUMNS.index("on_front")] = key in on_front

    def _log_fronts(self) -> None:
        """The table of fronts holds dominated points too, told apart by `on_front`; so do the plots, by colour."""
        rows = [r for r in self._rows if not r[COLUMNS.index("failure")]]
        table: Callable[[], Any] = lambda: self._wandb.Table(columns=list(COLUMNS), data=rows)  # noqa: E731
        plots = {
            f"front_{axis}": self._wandb.plot.scatter(table(), f"{axis}_ratio", "error", title=f"error against {axis}")
            for axis in ("flops", "latency")
        }
        pictures = {
            f"picture/{path.stem}": self._wandb.Image(str(path))
            for name in ("front_flops.png", "front_latency.png", "layers.png")
            if (path := self._folder / name).is_file()
        }
        self._run.log({"trial": len(self._rows), "front": table(), **plots, **pictures, **self._figures()})

    def _figures(self) -> dict[str, Any]:
        """The report's own plots, of the whole model and of each layer, as wandb's interactive panels."""
        return {name: self._wandb.Plotly(figure) for name, figure in figures(self._folder, LAYERS_PLOTTED).items()}

    def _log_summary(self, plans: Sequence[Plan]) -> None:
        self._run.summary.update(
            {
                "count/evaluations": len(self._rows),
                "count/stopped": sum(bool(r[COLUMNS.index("stopped")]) for r in self._rows),
                "count/failures": sum(bool(r[COLUMNS.index("failure")]) and not r[-2] for r in self._rows),
                **{f"plans/{p.name}/{q}_ratio": ratio for p in plans for q, ratio in p.ratios.items()},
                **{f"plans/{p.name}/damage": p.damage for p in plans},
            }
        )

    def _log_plans(self, plans: Sequence[Plan]) -> None:
        columns = ["plan", "damage", "flops_ratio", "latency_ratio", "parameters_ratio", "layers"]
        data = [
            [p.name, p.damage, *(p.ratios[q] for q in ("flops", "latency", "parameters")),
             ", ".join(f"{layer}: {e.candidate.family}" for layer, e in p.choices.items())]
            for p in plans
        ]  # fmt: skip
        self._run.log({"trial": len(self._rows), "plans": self._wandb.Table(columns=columns, data=data)})

    def _log_artifact(self, exports: Path | None) -> None:
        artifact = self._wandb.Artifact(f"{self._folder.resolve().name}-layers", type="layer-configs")
        if exports is not None:
            for path in sorted(p for p in exports.rglob("*") if p.is_file()):
                artifact.add_file(str(path), name=f"export/{path.relative_to(exports).as_posix()}")
        for name in ("config.yaml", "evaluations.jsonl", "front.json", "plans.json", "summary.json", "report.html"):
            if (self._folder / name).is_file():
                artifact.add_file(str(self._folder / name))
        self._run.log_artifact(artifact)
