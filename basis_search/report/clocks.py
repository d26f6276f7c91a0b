"""Latencies on a CUDA device by both clocks: of eager calls, and of calls replayed from a CUDA graph."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from basis_search.evaluation.candidate import Evaluation
from basis_search.evaluation.timing import GRAPH
from basis_search.families import FAMILIES


@dataclass(frozen=True)
class ClockRow:
    """Medians over one family's candidates: ratios to dense by each clock, the host's share, its time per call."""

    family: str
    candidates: int
    eager: float
    graph: float | None
    host_share: float | None
    host_seconds: float


def on_cuda(evaluations: Iterable[Evaluation]) -> list[Evaluation]:
    """The successful ones that were timed on a CUDA device."""
    return [e for e in evaluations if e.failure is None and e.host_seconds is not None]


def by_family(evaluations: Iterable[Evaluation]) -> list[ClockRow]:
    """One row per family; none where nothing was timed on a CUDA device."""
    groups: dict[str, list[Evaluation]] = defaultdict(list)
    for e in on_cuda(evaluations):
        groups[e.candidate.family].append(e)
    return [
        ClockRow(
            name,
            len(group := groups[name]),
            statistics.median(e.latency_ratio for e in group),
            _median(e.latency_graph_ratio for e in group),
            _median(e.host_share for e in group),
            statistics.median(e.host_seconds or 0.0 for e in group),
        )
        for name in [*(f for f in FAMILIES if f in groups), *sorted(set(groups) - set(FAMILIES))]
    ]


def which_counts(evaluations: Sequence[Evaluation]) -> str:
    """Which latency the search minimised, and the host's share of an eager call; "" where all ran on a CPU."""
    found = on_cuda(evaluations)
    if not found:
        return ""
    counts = Counter(e.timed for e in found)
    names = " and ".join(dict.fromkeys(e.device.name for e in found))
    if len(counts) == 1:
        by = "calls replayed from a CUDA graph" if GRAPH in counts else "eager calls"
        text = f"On {names} the search minimised the latency of {by}."
    else:
        text = (
            f"On {names} the latency of {counts[GRAPH]:,} candidates is of calls replayed from a CUDA graph, and of "
            f"{counts.total() - counts[GRAPH]:,} it is of eager calls."
        )
    share = _median(e.host_share for e in found)
    if share is not None:
        text += f" Launching takes the host {share:.0%} of an eager call, which a graph saves (median)."
    return text


def uncaptured(evaluations: Iterable[Evaluation]) -> list[tuple[str, str, str, int]]:
    """Family, kernel, reason and number of candidates, of kernels that no graph could be captured of."""
    found = Counter((e.candidate.family, *item) for e in on_cuda(evaluations) for item in e.uncaptured.items())
    return [(*key, times) for key, times in found.most_common()]


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
