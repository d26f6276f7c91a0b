"""Plots as plain points, which the interactive page and the PNG pictures both draw."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from basis_search.evaluation.candidate import Evaluation
from basis_search.families import FAMILIES
from basis_search.families.protocol import Style, spec_to_json
from basis_search.report.run_data import Run

INK = "#1F2933"
PLAN = "#AA3377"
NOT_INSTALLED = Style(light="#56B4E9", dark="#8AD0FF", marker="hexagon")
"""Style of families that a run names but this installation does not have."""
EXACT = 1e-10  # smaller relative squared errors are rounding: exact schemes have 1e-14, dense 1e-33
ERROR_SHOWN = 2.0  # an output of zero has error 1


@dataclass(frozen=True)
class Series:
    """Points of one kind; `x_spread` are half widths, `hover` one text each, its lines separated by newlines.

    Series of one `group` share an entry of the legend; `line` is "", "solid", "dotted" or "steps".
    """

    label: str
    color: str
    marker: str
    x: Sequence[float]
    y: Sequence[float]
    hover: Sequence[str] = ()
    names: Sequence[str] = ()
    line: str = ""
    hollow: bool = False
    faint: bool = False
    size: float = 9.0
    x_spread: Sequence[float] = ()
    group: str = ""


@dataclass(frozen=True)
class Panel:
    """Two axes and their series; `y_ticks` are (position, text), `y_range` is (bottom, top)."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series] = field(default_factory=list)
    x_log: bool = False
    y_log: bool = False
    y_ticks: Sequence[tuple[float, str]] = ()
    y_range: tuple[float, float] | None = None
    note: str = ""


def family_style(name: str) -> Style:
    """Colours and marker of a family, the same in every plot."""
    return FAMILIES[name].STYLE if name in FAMILIES else NOT_INSTALLED


def spec_text(evaluation: Evaluation) -> str:
    """The spec in one line, such as "tile=2, rank=7"; "no parameters" for an empty one."""
    return ", ".join(f"{k}={v}" for k, v in spec_to_json(evaluation.candidate.spec).items()) or "no parameters"


def number(value: float | None) -> str:
    """Three significant digits; whole numbers up to a million in full."""
    if value is None or not math.isfinite(value):
        return "—"
    return f"{value:,.0f}" if 999.5 <= abs(value) < 1e6 else f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """Seconds in a suitable unit."""
    if seconds is None or not math.isfinite(seconds):
        return "—"
    for unit, scale, least in (
        ("h", 3600, 7200),
        ("min", 60, 120),
        ("s", 1, 1),
        ("ms", 1e-3, 1e-3),
        ("µs", 1e-6, 1e-6),
    ):
        if abs(seconds) >= least:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def count(value: float) -> str:
    """A large count with its SI prefix."""
    for prefix, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= scale:
            return f"{value / scale:.3g} {prefix}"
    return f"{value:.3g}"


def both_clocks(e: Evaluation) -> list[str]:
    """Lines on both latencies of one candidate; none where it ran on a CPU."""
    if e.host_seconds is None:
        return []
    lines = [
        f"eager {number(e.latency_ratio)} of dense ({duration(e.latency)}), host {duration(e.host_seconds)} a call"
    ]
    if e.latency_graph is not None and e.host_share is not None:
        graph = f"{number(e.latency_graph_ratio)} of dense ({duration(e.latency_graph)})"
        lines.append(f"CUDA graph {graph}, the host's share of eager {e.host_share:.0%}")
    return lines + [f"no CUDA graph of {name}: {reason}" for name, reason in e.uncaptured.items()]


def weighted(e: Evaluation) -> list[str]:
    """The line on the weighted error and the damage; none for a layer without an output metric."""
    if e.weighted_error is None:
        return []
    return [f"weighted error {number(e.weighted_error)}, damage {number(e.damage)}"]


def error_label(evaluations: Iterable[Evaluation]) -> str:
    """The label of an axis of errors that a search minimises."""
    felt = any(e.weighted_error is not None for e in evaluations)
    return "relative squared output error" + (", weighted by the output metric" if felt else "")


def describe(e: Evaluation, plans: Sequence[str] = ()) -> str:
    """Hover text of a candidate."""
    dense = e.timed_latency / e.timed_ratio if e.timed_ratio > 0 else math.nan
    lines = [
        f"{e.candidate.family}: {spec_text(e)}",
        f"kernel {e.kernel or '—'}",
        f"error {'0 (exact)' if e.error == 0 else number(e.error)}",
        *weighted(e),
        f"FLOPs {number(e.flops_ratio)} of dense ({count(e.cost.flops)} of {count(e.dense_cost.flops)})",
        f"time {number(e.timed_ratio)} of dense ({duration(e.timed_latency)} against {duration(dense)}, "
        f"spread {e.timed_spread:.0%})",
        f"parameters {count(e.cost.parameters)} of {count(e.dense_cost.parameters)}",
    ]
    lines += both_clocks(e)
    if e.cost.lookups:
        lines.append(f"look-ups {count(e.cost.lookups)}")
    if plans:
        lines.append(f"chosen by {', '.join(plans)}")
    return "\n".join(lines)


AXES = {"flops": "FLOPs, dense = 1", "latency": "measured latency, dense = 1"}


def ratio(e: Evaluation, axis: str) -> float:
    """A candidate's position on an axis."""
    return e.flops_ratio if axis == "flops" else e.timed_ratio


def layer_panel(run: Run, layer: str, axis: str) -> Panel:
    """Error of every candidate of one layer against FLOPs or latency; the front solid, the dominated ones faint."""
    done = [e for e in run.evaluations if e.candidate.layer == layer and all(map(math.isfinite, e.objectives))]
    front = {e.candidate.hash for e in run.fronts[layer].evaluations} if layer in run.fronts else set()
    chosen: dict[str, list[str]] = {}
    for plan in run.plans:
        if layer in plan.choices:
            chosen.setdefault(plan.choices[layer].candidate.hash, []).append(plan.name)
    positive = [e.searched_error for e in done if e.searched_error > EXACT]
    floor = min(positive, default=1e-6) / 4  # the place of exact candidates: a log axis has no zero
    series = []
    steps = stairs([(ratio(e, axis), max(e.searched_error, floor)) for e in done if e.candidate.hash in front])
    if steps:
        xs, ys = zip(*steps, strict=True)
        series.append(Series("front", "#9AA5B1", "", xs, ys, line="steps"))
    order = [*FAMILIES, *sorted({e.candidate.family for e in done} - set(FAMILIES))]
    for family in order:
        style = family_style(family)
        for on_front in (False, True):
            group = [e for e in done if e.candidate.family == family and (e.candidate.hash in front) == on_front]
            if not group:
                continue
            series.append(
                Series(
                    label=family if on_front else f"{family}, dominated",
                    color=style.light,
                    marker=style.marker,
                    x=[ratio(e, axis) for e in group],
                    y=[max(e.searched_error, floor) for e in group],
                    hover=[describe(e, chosen.get(e.candidate.hash, ())) for e in group],
                    hollow=not on_front,
                    faint=not on_front,
                    size=10 if on_front else 7,
                    x_spread=[e.timed_ratio * e.timed_spread / 2 for e in group]
                    if on_front and axis == "latency"
                    else (),
                    group=family,
                )
            )
    rings = [e for e in done if e.candidate.hash in chosen]
    if rings:
        series.append(
            Series("chosen by a plan", PLAN, "circle", [ratio(e, axis) for e in rings],
                   [max(e.searched_error, floor) for e in rings], hollow=True, size=17, group="chosen by a plan")
        )  # fmt: skip
    top = min(max(positive, default=1.0), ERROR_SHOWN)
    return Panel(
        layer, AXES[axis], error_label(done), series, x_log=True, y_log=True,
        y_range=(floor / 1.8, max(top * 1.8, floor * 10)),
    )  # fmt: skip


def stairs(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that are not dominated in these two coordinates, by x."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not kept or y < kept[-1][1]:
            kept.append((x, y))
    return kept
