"""A search as it goes, in the terminal: how far it is, what each budget gets so far, who works at what, what failed."""

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
from basis_search.evaluation.evaluate import Evaluation
from basis_search.evaluation.pareto import ParetoFront
from basis_search.planning.budget import budgets_of, text
from basis_search.planning.plan import LatencyLimitedPlan, plan
from basis_search.report import findings

PLAN_SHARE = 0.01
"""Of the wall time that planning for the screen may take: the search's own work comes first."""
ROWS = 8
"""Of workers and of failures that are shown."""


@dataclass
class Hand:
    """One worker: evaluations done, of which stopped early and failed, and what it has in hand where that is known."""

    done: int = 0
    stopped: int = 0
    failed: int = 0
    first: float = math.inf
    last: float = 0.0
    now: str = ""
    silent: bool = False

    @property
    def per_minute(self) -> float | None:
        """Evaluations per minute from the first one's start to the last one's end."""
        return 60 * self.done / (self.last - self.first) if self.last > self.first else None


@dataclass
class Tally:
    """What has been evaluated so far; `total` is how many evaluations there will be at most, where that is known."""

    name: str
    budgets: Mapping[str, Sequence[float]] = field(default_factory=dict)
    total: int | None = None
    began: float = field(default_factory=time.time)
    evaluations: list[Evaluation] = field(default_factory=list)
    fronts: dict[str, ParetoFront] = field(default_factory=dict)
    hands: dict[int, Hand] = field(default_factory=lambda: defaultdict(Hand))
    _plans: list[tuple[str, str, str, str, str]] = field(default_factory=list)
    _planned_at: int = 0
    _plan_seconds: float = 0.0
    _since: float = field(default_factory=time.perf_counter)

    def add(self, e: Evaluation, worker: int = 0, started: float = 0.0, finished: float = 0.0) -> None:
        """Takes in an evaluation and who made it, when (unix seconds, zero where unknown)."""
        self.evaluations.append(e)
        hand = self.hands[worker]
        hand.done += 1
        hand.stopped += bool(e.stopped)
        hand.failed += e.failure is not None and not e.stopped
        if finished > started > 0:
            hand.first, hand.last = min(hand.first, started), max(hand.last, finished)
        if e.failure is None:
            name = e.candidate.layer
            self.fronts[name] = self.fronts.get(name, ParetoFront()).add(e)

    def best(self, at_once: bool = False) -> list[tuple[str, str, str, str, str]]:
        """Per budget: its name, damage, FLOPs, latency, families; `at_once`, or as new as PLAN_SHARE lets it."""
        import scipy.optimize  # noqa: F401  (plan's import, once, is no part of the share)

        spent = self._plan_seconds / max(time.perf_counter() - self._since, 1e-9)
        if (
            self.fronts
            and len(self.evaluations) != self._planned_at
            and (at_once or not self._plans or spent < PLAN_SHARE)
        ):
            begun = time.perf_counter()
            self._plans = [_best(self.fronts, budget) for budget in budgets_of(self.budgets)]
            self._planned_at = len(self.evaluations)
            self._plan_seconds += time.perf_counter() - begun
        return self._plans


def _best(fronts: Mapping[str, ParetoFront], budget: Mapping[str, float]) -> tuple[str, str, str, str, str]:
    label = text(budget)
    try:
        found = plan(fronts, budget)
    except BadInput:
        return label, "—", "—", "—", "nothing found so far meets it"
    families = Counter(e.candidate.family for e in found.choices.values())
    mixed = ", ".join(f"{times} {family}" for family, times in families.most_common())
    damage = f"{found.damage:.3g}"
    if isinstance(found, LatencyLimitedPlan):
        damage += f" ({found.damage_unlimited:.3g} at latency {found.latency_unlimited:.2f})"
    return label, damage, f"{found.ratios['flops']:.2f}", f"{found.ratios['latency']:.2f}", mixed


def picture(tally: Tally, now: float | None = None, at_once: bool = False) -> RenderableType:
    """The screen: what `basis-search watch` and a search on a terminal show; `at_once` with plans of this moment."""
    now = time.time() if now is None else now
    parts: list[RenderableType] = [_head(tally, now)]
    if tally.budgets:
        table = _table("best so far for", "damage", "FLOPs", "latency", "of which")
        rows = tally.best(at_once)
        for row in rows:
            table.add_row(*row)
        if not rows:
            table.add_row("—", "", "", "", "no evaluation has succeeded yet")
        parts.append(table)
    if tally.hands:
        parts.append(_workers(tally, now))
    parts.append(_failures(tally))
    return Group(*parts)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim", title_justify="left")
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if name in RIGHT else "left", no_wrap=index == 0, overflow="ellipsis")
    return table


RIGHT = ("damage", "FLOPs", "latency", "done", "stopped", "failed", "a minute", "times")


def _head(tally: Tally, now: float) -> RenderableType:
    done, total = len(tally.evaluations), tally.total
    first = min((h.first for h in tally.hands.values()), default=math.inf)
    passed = max(0.0, now - min(first, tally.began))
    words = Text.assemble((tally.name, "bold"), f"   {done:,}" + (f" of {total:,}" if total else "") + " evaluations")
    words.append(f", {len(tally.fronts)} layer{'s' if len(tally.fronts) != 1 else ''}, {_clock(passed)}")
    rates = [h.per_minute for h in tally.hands.values() if not h.silent]
    rate = sum(r for r in rates if r is not None)
    if total and rate and done < total:
        words.append(f", about {_clock(60 * (total - done) / rate)} to go")
    if not total:
        return Group(words, Text())
    return Group(words, ProgressBar(total, min(done, total), width=72, complete_style="cyan"), Text())


def _workers(tally: Tally, now: float) -> RenderableType:
    table = _table("worker", "done", "stopped", "failed", "a minute", "last", "at work on")
    order = sorted(tally.hands.items())
    for number, hand in order[:ROWS]:
        rate = "—" if hand.per_minute is None else f"{hand.per_minute:.1f}"
        last = f"{_clock(now - hand.last)} ago" if hand.last else "—"
        at = Text("silent" if hand.silent else hand.now, style="yellow" if hand.silent else "")
        table.add_row(str(number), str(hand.done), str(hand.stopped), str(hand.failed), rate, last, at)
    if len(order) > ROWS:
        rest = [hand for _, hand in order[ROWS:]]
        sums = [str(sum(getattr(h, part) for h in rest)) for part in ("done", "stopped", "failed")]
        table.add_row(f"{len(rest)} more", *sums, "", "", "")
    return Group(Text(), table)


def _failures(tally: Tally) -> RenderableType:
    found = findings.failures(tally.evaluations)
    if not found:
        return Text("\nno evaluation failed" if tally.evaluations else "", style="dim")
    table = _table("times", "failures by reason", "families")
    table.columns[1].no_wrap = True
    for failure in found[:ROWS]:
        table.add_row(str(failure.times), Text(failure.reason), ", ".join(failure.families))
    if len(found) > ROWS:
        table.add_row(str(sum(f.times for f in found[ROWS:])), f"of {len(found) - ROWS} other kinds", "")
    return Group(Text(), table)


def _clock(seconds: float) -> str:
    seconds = int(max(0.0, seconds))
    if seconds < 60:
        return f"{seconds} s"
    minutes, hours = seconds // 60 % 60, seconds // 3600
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds % 60:02d} s"
