"""Tables and sentences of the report: counts per family, use of time, failures, early stopping, set-up."""

from __future__ import annotations

import itertools
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from basis_search.evaluation.candidate import Evaluation
from basis_search.families import FAMILIES
from basis_search.report.panels import count, number
from basis_search.report.run_data import Run
from basis_search.workers.evaluation_log import Entry

PAUSE = 60.0
"""Seconds between two evaluations of a worker above which the search counts as stopped meanwhile."""


@dataclass(frozen=True)
class FamilyRow:
    """Counts of one family's candidates; `rate` is the median of FLOPs per second."""

    family: str
    evaluated: int
    failed: int
    on_front: int
    fewer: int
    slower: int
    rate: float | None
    bytes_per_flop: float | None
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class TimeSpent:
    """Seconds of all workers together; `overhead` is time outside fit, correctness check and timing."""

    fit: float
    check: float
    timing: float
    overhead: float | None
    paused: float

    @property
    def total(self) -> float:
        return self.fit + self.check + self.timing + (self.overhead or 0.0)


@dataclass(frozen=True)
class Failure:
    """Failures whose reasons differ in their numbers only."""

    reason: str
    times: int
    families: Sequence[str]
    layers: Sequence[str]


def families(run: Run) -> list[FamilyRow]:
    """One row per family, the baselines first."""
    groups: dict[str, list[Evaluation]] = defaultdict(list)
    for e in run.evaluations:
        if not e.stopped:
            groups[e.candidate.family].append(e)
    fronts = {(name, e.candidate.hash) for name, front in run.fronts.items() for e in front.evaluations}
    rows = []
    for name in [*(f for f in FAMILIES if f in groups), *sorted(set(groups) - set(FAMILIES))]:
        done = [e for e in groups[name] if e.failure is None]
        fewer = [e for e in done if e.flops_ratio < 1]
        seconds = {key: sum(e.seconds.get(key, 0.0) for e in groups[name]) for key in ("fit", "gate", "clock")}
        rows.append(
            FamilyRow(
                name,
                len(groups[name]),
                len(groups[name]) - len(done),
                len({(e.candidate.layer, e.candidate.hash) for e in done} & fronts),
                len(fewer),
                sum(e.timed_ratio > 1 for e in fewer),
                _median(e.cost.flops / e.timed_latency for e in done if e.timed_latency > 0),
                _median(e.cost.bytes / e.cost.flops for e in done if e.cost.flops > 0),
                seconds,
            )
        )
    return rows


def why_slower(run: Run) -> str:
    """The number of candidates that are slower than dense in spite of fewer FLOPs, and the reasons."""
    fewer = [e for e in run.evaluations if e.failure is None and e.flops_ratio < 1]
    slower = [e for e in fewer if e.timed_ratio > 1]
    if not fewer:
        return "No evaluated candidate has fewer FLOPs than its dense layer."
    text = (
        f"{len(slower):,} of the {len(fewer):,} candidates with fewer FLOPs than dense "
        f"{'is' if len(slower) == 1 else 'are'} slower than dense."
    )
    if not slower:
        return text + " On these layers and this device, fewer FLOPs mean less time."
    dense = _median(e.dense_cost.flops * e.timed_ratio / e.timed_latency for e in slower if e.timed_latency > 0)
    own = _median(e.cost.flops / e.timed_latency for e in slower if e.timed_latency > 0)
    traffic = _median(
        (e.cost.bytes / max(e.cost.flops, 1)) / (e.dense_cost.bytes / max(e.dense_cost.flops, 1)) for e in slower
    )
    rates = ""
    if dense and own and traffic:
        rates = (
            f" The dense kernel reaches {count(dense)}FLOP/s (median) and these candidates {count(own)}FLOP/s, with "
            f"{number(traffic)} times dense's memory traffic per FLOP."
        )
    return (
        text
        + rates
        + " FLOPs count arithmetic only. A dense layer is one large matrix product, which keeps all vector "
        "units busy and reuses each weight from cache; a structured layer encodes, looks up, permutes or multiplies in "
        "small blocks, so it waits for memory, uses short vectors and has a fixed cost per call. The smaller the layer "
        "and its batch, the more FLOPs a structure must save before it saves time."
    )


def spent(records: Sequence[Entry]) -> TimeSpent:
    """The workers' time by use."""
    seconds = {key: sum(r.evaluation.seconds.get(key, 0.0) for r in records) for key in ("fit", "gate", "clock")}
    busy, paused = 0.0, 0.0
    workers: dict[int, list[Entry]] = defaultdict(list)
    for record in records:
        if record.finished > record.started > 0:
            workers[record.worker].append(record)
    for timed in workers.values():
        timed.sort(key=lambda r: r.started)
        busy += timed[-1].finished - timed[0].started
        gaps = [b.started - a.finished for a, b in itertools.pairwise(timed)]
        paused += sum(gap for gap in gaps if gap > PAUSE)
    overhead = max(0.0, busy - paused - sum(seconds.values())) if workers else None
    return TimeSpent(seconds["fit"], seconds["gate"], seconds["clock"], overhead, paused)


def failures(evaluations: Iterable[Evaluation]) -> list[Failure]:
    """Failures by reason, the most frequent first; reasons that differ in numbers are one, quoted from the first."""
    groups: dict[str, list[Evaluation]] = defaultdict(list)
    for e in evaluations:
        if e.failure is not None and not e.stopped:
            groups[re.sub(r"\d+(\.\d+)?(e[-+]?\d+)?", "#", e.failure)].append(e)
    found = [
        Failure(
            group[0].failure or "",
            len(group),
            sorted({e.candidate.family for e in group}),
            list(dict.fromkeys(e.candidate.layer for e in group)),
        )
        for group in groups.values()
    ]
    return sorted(found, key=lambda f: -f.times)


def stopped(evaluations: Iterable[Evaluation]) -> list[tuple[str, int, list[str]]]:
    """Candidates that were stopped early, neither evaluated nor failed: stage, number, families."""
    groups: dict[str, list[Evaluation]] = defaultdict(list)
    for e in evaluations:
        if e.stopped:
            groups[e.stopped].append(e)
    return [(stage, len(group), sorted({e.candidate.family for e in group})) for stage, group in groups.items()]


def setup(run: Run) -> list[tuple[str, str]]:
    """The device and settings of the measurements, as far as the run folder has them."""
    rows = []
    for device in dict.fromkeys(e.device for e in run.evaluations):
        plural = "s" if device.threads != 1 else ""
        threads = f"timed on {device.threads} thread{plural}, " if device.threads else ""
        parts = "cores" if device.threads else "multiprocessors"  # a GPU has no threads of ours
        rows.append(
            ("device", f"{device.name}; {device.cores} {parts}; {device.instructions or 'instruction set unknown'}; "
                       f"{threads}torch {device.torch}")
        )  # fmt: skip
    for key in ("batch", "dtype"):
        values = _stated(run, key)
        if values:
            rows.append((f"{key} of the layers" if key == "batch" else key, values))
    if run.summary:
        timing = run.summary.timing
        rows.append(("model", run.summary.model))
        rows += [(f"whole model: {k}", str(timing[k])) for k in ("threads", "batch", "dtype") if k in timing]
    finished = [r.finished for r in run.entries if r.finished > 0]
    if finished:
        rows.append(("last evaluation", datetime.fromtimestamp(max(finished), UTC).strftime("%Y-%m-%d %H:%M UTC")))
    return rows


def _stated(run: Run, key: str) -> str:
    """Values of a key in the lines of evaluations.jsonl, else in the configuration."""
    values: dict[str, Any] = dict.fromkeys(str(e.data[key]) for e in run.entries if key in e.data)
    if not values:
        values = dict.fromkeys(re.findall(rf"^\s*{key}:\s*(\S+)\s*$", run.config, re.MULTILINE))
    return ", ".join(v for v in values if v not in ("null", "None"))


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None
