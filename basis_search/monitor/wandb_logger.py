"""Log a search to wandb, offline or online; a failure of wandb never stops the search."""

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
from basis_search.evaluation.candidate import Evaluation
from basis_search.evaluation.pareto import ParetoFront
from basis_search.monitor.table import COLUMNS, row
from basis_search.monitor.timeouts import Answer, CallThread
from basis_search.monitor.tracker import Fronts, Tracker
from basis_search.planning.plan import Plan
from basis_search.report import figures
from basis_search.workers.evaluation_log import Record
from basis_search.workers.redaction import without_addresses
from basis_search.workers.run_folder import RunFolder

MODES = ("off", "offline", "online")
INIT_SECONDS, START_SECONDS, CALL_SECONDS, FINISH_SECONDS = 20.0, 90.0, 20.0, 60.0
"""How long a search waits for wandb: for the server to open the run, for the whole start, for one call (a table asks
the server), and at the end for the rest to be sent."""
FIRST_TABLE, TABLE_GROWTH = 20, 1.5
"""Rows of the first table, and the factor to the next: a logged table is final, so each holds all rows again."""
SHARE = 0.01
"""The largest fraction of the wall time for tables while the search runs; a table that is due waits for that."""
LAYERS_PLOTTED = 64


def start(mode: str, run: Path, config: Mapping[str, Any], record: Iterable[Evaluation] | None = None) -> Tracker:
    """A tracker for one worker of the search in the folder `run`, to be used in a `with` statement.

    Args:
        mode: "off" (nothing is imported), "offline" (files under run/wandb, no account needed) or "online".
        run: the run folder; a search resumed in it keeps its wandb id.
        config: of the search, logged as the run's config; addresses and passwords are cut from URLs.
        record: the search's evaluations, read at the start and at the end; by default those in the run folder.

    Raises:
        BadInput: an unknown mode.
    """
    if mode not in MODES:
        raise BadInput(f"there is no tracking {mode!r}{near_miss(str(mode), MODES)}")
    return Tracker() if mode == "off" else WandbTracker(mode, Path(run), config, record)


def run_id(run: Path, worker: int) -> str:
    """The wandb id of a worker, a function of machine, folder and number, so that a resumed search keeps it."""
    digest = hashlib.sha256(f"{platform.node()} {run.resolve()}".encode()).hexdigest()[:12]
    return f"{re.sub(r'[^A-Za-z0-9_-]', '-', run.resolve().name)[:40]}-{digest}-{worker}"


class WandbTracker(Tracker):
    """One wandb run: evaluations and fronts as tables and plots, hypervolume over trials, exported plans as artifact.

    The first error of wandb is printed to stderr and ends the tracking; the search goes on.
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
        self._calls = CallThread()
        self._opening: Answer | None = None

    def __enter__(self) -> Self:
        with self._guarded("start"):
            for evaluation in self._known():  # of a resumed search
                self._keep(evaluation)
            self._next_table = max(FIRST_TABLE, int(len(self._rows) * TABLE_GROWTH))
            self._opening = self._calls.begin(self._open)  # while the search makes its first evaluation
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_open():
            return
        with self._guarded("finish"):
            if len(self._rows) > 0 and self._next_table != 0:
                self._calls.call(self._log_evaluations, CALL_SECONDS)
            self._run.summary["tracking_seconds"] = round(self.seconds, 3)
            self._calls.call(
                lambda: self._run.finish(exit_code=0 if kind is None else 1), FINISH_SECONDS + CALL_SECONDS
            )
            if self._mode == "offline":
                print(f"wandb: recorded under {self._folder / 'wandb'}; `wandb sync` sends it")

    def evaluation(self, evaluation: Evaluation, fronts: Fronts) -> None:
        if not self._is_open():
            return
        with self._guarded("log"):
            layer = evaluation.candidate.layer
            self._keep(evaluation, fronts.get(layer))
            values: dict[str, Any] = {
                "trial": len(self._rows),
                "failed": int(evaluation.failure is not None and not evaluation.stopped),
                "stopped": int(bool(evaluation.stopped)),
            }
            if layer in self._volumes:
                values[f"hypervolume/{layer}"] = self._volumes[layer]
                values["hypervolume"] = sum(self._volumes.values()) / len(self._volumes)
            if evaluation.failure is None:
                values |= dict(zip(("error", "flops_ratio", "latency_ratio"), evaluation.objectives, strict=True))
                if evaluation.weighted_error is not None:  # the objective; "error" stays the plain one
                    values |= {"error": evaluation.error, "weighted_error": evaluation.weighted_error}
                    values["damage"] = evaluation.damage
            if evaluation.failure is None and evaluation.host_seconds is not None:  # on a CUDA device
                by_clock = {
                    "eager_ratio": evaluation.latency_ratio, "graph_ratio": evaluation.latency_graph_ratio,
                    "host_share": evaluation.host_share, "host_us": evaluation.host_seconds * 1e6,
                }  # fmt: skip
                values |= {f"clock/{name}": value for name, value in by_clock.items() if value is not None}
            values |= {f"seconds/{part}": seconds for part, seconds in evaluation.seconds.items()}
            begun = time.perf_counter()
            due = len(self._rows) >= self._next_table and self._table_seconds <= SHARE * (begun - self._begun)
            self._calls.call(lambda: self._log(values, due), CALL_SECONDS)
            if due:
                self._table_seconds += time.perf_counter() - begun
                self._next_table = int(len(self._rows) * TABLE_GROWTH)

    def finish(self, fronts: Fronts, plans: Sequence[Plan], exports: Path | None = None) -> None:
        if not self._is_open():
            return
        with self._guarded("finish"):
            known = {*self._keys}  # other workers' evaluations belong to the search
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
                self._calls.call(step, CALL_SECONDS)
            self._next_table = 0  # that was the last

    def _is_open(self) -> bool:
        """Whether there is a run to log to; waits for its start."""
        if self._opening is not None:
            opening, self._opening = self._opening, None
            with self._guarded("start"):
                self._calls.wait(opening, START_SECONDS)
        return self._run is not None

    @contextlib.contextmanager
    def _guarded(self, doing: str) -> Iterator[None]:
        """Prints the first exception and ends the tracking; adds the time to `seconds`."""
        begun = time.perf_counter()
        try:
            yield
        except Exception as problem:  # wandb raises exceptions of many kinds; none may reach the search
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
            wandb.teardown()  # its service still holds the id of the failed run
            self._run = self._init()
        self._run.define_metric("trial")
        self._run.define_metric("*", step_metric="trial")
        wandb.Table(columns=["trial"], data=[[0]])  # the first takes half a second to import: not during the search

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
            group=self._folder.resolve().name,  # groups the runs of all workers
            job_type="search",
            config=without_addresses(self._config),
            mode=self._mode,
            resume="allow",
            settings=self._wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                x_disable_stats=True,  # sampling statistics would disturb the clock
                x_save_requirements=False,
                init_timeout=INIT_SECONDS,
                finish_timeout=FINISH_SECONDS,
            ),
        )

    def _known(self) -> Iterable[Evaluation]:
        return Record(RunFolder(self._folder).evaluations_file) if self._record is None else self._record

    def _keep(self, evaluation: Evaluation, front: ParetoFront | None = None) -> None:
        layer = evaluation.candidate.layer
        self._rows.append(row(len(self._rows) + 1, evaluation))
        self._keys.append((layer, evaluation.candidate.hash))
        before = self._fronts.get(layer, ParetoFront())
        after = before.add(evaluation) if front is None else before.merge(front)  # which includes the evaluation
        if after != before:
            self._fronts[layer], self._volumes[layer] = after, after.hypervolume()

    def _log(self, values: Mapping[str, Any], with_table: bool) -> None:
        self._run.log(values)
        if with_table:
            self._log_evaluations()

    def _log_evaluations(self) -> None:
        self._mark_fronts()
        table = self._wandb.Table(columns=list(COLUMNS), data=self._rows)
        self._run.log({"trial": len(self._rows), "evaluations": table})

    def _mark_fronts(self) -> None:
        on_front = {(name, e.candidate.hash) for name, front in self._fronts.items() for e in front.evaluations}
        for values, key in zip(self._rows, self._keys, strict=True):
            values[COLUMNS.index("on_front")] = key in on_front

    def _log_fronts(self) -> None:
        """Tables and plots hold the dominated points too; the column `on_front` tells which are not."""
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
        """The report's plots, of the whole model and of each layer, as interactive panels of wandb."""
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
        run = RunFolder(self._folder)
        for path in (run.config_file, run.evaluations_file, run.front_file, run.plans_file, run.summary_file,
                     run.report_file):  # fmt: skip
            if path.is_file():
                artifact.add_file(str(path))
        self._run.log_artifact(artifact)
