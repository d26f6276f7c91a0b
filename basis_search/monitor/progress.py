"""Progress of a running search for the terminal: evaluations done, the best plan per budget, workers, failures."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from basis_search.errors import BadInput
from basis_search.evaluation.candidate import Evaluation
from basis_search.evaluation.pareto import ParetoFront
from basis_search.planning.budget import DEFAULT_MAX_LATENCY, OnlySlowPlans, budgets_of, excess, text
from basis_search.planning.plan import LatencyLimitedPlan, plan_within
from basis_search.report import clocks, findings

PLAN_SHARE = 0.01
"""The largest fraction of the wall time that planning for the screen may take."""
ROWS_SHOWN = 8
"""At most so many workers, and so many reasons of failure."""


@dataclass
class WorkerProgress:
    """One worker's evaluations.

    Attributes:
        done: all that ended, `stopped` early and `failed` ones among them.
        first, last: start of the first and end of the last evaluation, unix seconds.
        activity: what it is evaluating, "" where that is unknown.
        silent: its heartbeat has stopped.
    """

    done: int = 0
    stopped: int = 0
    failed: int = 0
    first: float = math.inf
    last: float = 0.0
    activity: str = ""
    silent: bool = False

    @property
    def per_minute(self) -> float | None:
        """Evaluations per minute between `first` and `last`."""
        return 60 * self.done / (self.last - self.first) if self.last > self.first else None


@dataclass
class SearchProgress:
    """The evaluations so far; `total` is the largest number of evaluations that the search will make, if known."""

    name: str
    budgets: Mapping[str, Sequence[float]] = field(default_factory=dict)
    total: int | None = None
    max_latency: float = DEFAULT_MAX_LATENCY
    began: float = field(default_factory=time.time)
    evaluations: list[Evaluation] = field(default_factory=list)
    fronts: dict[str, ParetoFront] = field(default_factory=dict)
    workers: dict[int, WorkerProgress] = field(default_factory=lambda: defaultdict(WorkerProgress))
    _plans: list[tuple[str, str, str, str, str]] = field(default_factory=list)
    _planned_at: int = 0
    _plan_seconds: float = 0.0
    _since: float = field(default_factory=time.perf_counter)

    def add(self, e: Evaluation, worker: int = 0, started: float = 0.0, finished: float = 0.0) -> None:
        """Adds an evaluation of a worker; `started` and `finished` are unix seconds, zero where unknown."""
        self.evaluations.append(e)
        by = self.workers[worker]
        by.done += 1
        by.stopped += bool(e.stopped)
        by.failed += e.failure is not None and not e.stopped
        if finished > started > 0:
            by.first, by.last = min(by.first, started), max(by.last, finished)
        if e.failure is None:
            name = e.candidate.layer
            self.fronts[name] = self.fronts.get(name, ParetoFront()).add(e)

    def best(self, replan: bool = False) -> list[tuple[str, str, str, str, str]]:
        """Per budget its name, damage, FLOPs, latency and families; new plans if `replan` or PLAN_SHARE allows."""
        import scipy.optimize  # noqa: F401  (imported before the clock starts)

        spent = self._plan_seconds / max(time.perf_counter() - self._since, 1e-9)
        if (
            self.fronts
            and len(self.evaluations) != self._planned_at
            and (replan or not self._plans or spent < PLAN_SHARE)
        ):
            begun = time.perf_counter()
            self._plans = [_best(self.fronts, budget, self.max_latency) for budget in budgets_of(self.budgets)]
            self._planned_at = len(self.evaluations)
            self._plan_seconds += time.perf_counter() - begun
        return self._plans


def _best(
    fronts: Mapping[str, ParetoFront], budget: Mapping[str, float], max_latency: float
) -> tuple[str, str, str, str, str]:
    label = text(budget)
    try:
        found = plan_within(fronts, budget, max_latency)
    except OnlySlowPlans:
        return label, "—", "—", "—", f"all that meets it so far {excess(max_latency)}"
    except BadInput:
        return label, "—", "—", "—", "nothing found so far meets it"
    families = Counter(e.candidate.family for e in found.choices.values())
    mixed = ", ".join(f"{times} {family}" for family, times in families.most_common())
    damage = f"{found.damage:.3g}"
    if isinstance(found, LatencyLimitedPlan):
        damage += f" ({found.damage_unlimited:.3g} at latency {found.latency_unlimited:.2f})"
    return label, damage, f"{found.ratios['flops']:.2f}", f"{found.ratios['latency']:.2f}", mixed


def render(progress: SearchProgress, now: float | None = None, replan: bool = False) -> RenderableType:
    """What `basis-search watch` and a search on a terminal show; `replan` makes new plans now."""
    now = time.time() if now is None else now
    parts: list[RenderableType] = [_head(progress, now)]
    if progress.budgets:
        table = _table("best plan so far for", "damage", "FLOPs", "latency", "families")
        rows = progress.best(replan)
        for row in rows:
            table.add_row(*row)
        if not rows:
            table.add_row("—", "", "", "", "no evaluation has succeeded yet")
        parts.append(table)
    if progress.workers:
        parts.append(_workers(progress, now))
    parts.append(_failures(progress))
    return Group(*parts)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim", title_justify="left")
    for index, name in enumerate(columns):
        table.add_column(
            name,
            justify="right" if name in RIGHT else "left",
            no_wrap=index == 0,
            min_width=len(name),
            overflow="ellipsis",
        )
    return table


RIGHT = ("damage", "FLOPs", "latency", "done", "stopped", "failed", "a minute", "times")


def _head(progress: SearchProgress, now: float) -> RenderableType:
    done, total = len(progress.evaluations), progress.total
    first = min((h.first for h in progress.workers.values()), default=math.inf)
    passed = max(0.0, now - min(first, progress.began))
    words = Text.assemble(
        (progress.name, "bold"), f"   {done:,}" + (f" of {total:,}" if total else "") + " evaluations"
    )
    words.append(f", {len(progress.fronts)} layer{'s' if len(progress.fronts) != 1 else ''}, {_clock(passed)}")
    rates = [h.per_minute for h in progress.workers.values() if not h.silent]
    rate = sum(r for r in rates if r is not None)
    if total and rate and done < total:
        words.append(f", about {_clock(60 * (total - done) / rate)} to go")
    if device := clocks.which_counts(progress.evaluations):
        words.append(f"\n{device}", "dim")
    if not total:
        return Group(words, Text())
    return Group(words, ProgressBar(total, min(done, total), width=72, complete_style="cyan"), Text())


def _workers(progress: SearchProgress, now: float) -> RenderableType:
    table = _table("worker", "done", "stopped", "failed", "a minute", "last", "evaluating")
    order = sorted(progress.workers.items())
    for number, worker in order[:ROWS_SHOWN]:
        rate = "—" if worker.per_minute is None else f"{worker.per_minute:.1f}"
        last = f"{_clock(now - worker.last)} ago" if worker.last else "—"
        at = Text("silent" if worker.silent else worker.activity, style="yellow" if worker.silent else "")
        table.add_row(str(number), str(worker.done), str(worker.stopped), str(worker.failed), rate, last, at)
    if len(order) > ROWS_SHOWN:
        rest = [worker for _, worker in order[ROWS_SHOWN:]]
        sums = [str(sum(getattr(h, part) for h in rest)) for part in ("done", "stopped", "failed")]
        table.add_row(f"{len(rest)} more", *sums, "", "", "")
    return Group(Text(), table)


def _failures(progress: SearchProgress) -> RenderableType:
    found = findings.failures(progress.evaluations)
    if not found:
        return Text("\nno evaluation failed" if progress.evaluations else "", style="dim")
    table = _table("times", "failures by reason", "families")
    table.columns[1].no_wrap = True
    for failure in found[:ROWS_SHOWN]:
        table.add_row(str(failure.times), Text(failure.reason), ", ".join(failure.families))
    if len(found) > ROWS_SHOWN:
        table.add_row(str(sum(f.times for f in found[ROWS_SHOWN:])), f"of {len(found) - ROWS_SHOWN} other kinds", "")
    return Group(Text(), table)


def _clock(seconds: float) -> str:
    seconds = int(max(0.0, seconds))
    if seconds < 60:
        return f"{seconds} s"
    minutes, hours = seconds // 60 % 60, seconds // 3600
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds % 60:02d} s"
