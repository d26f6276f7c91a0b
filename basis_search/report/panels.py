"""What the report draws, as plain points: the interactive page and the pictures show the same panels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from basis_search.evaluate import Evaluation
from basis_search.family import spec_to_json
from basis_search.report.run import Point, Run

INK = "#1F2933"
PLAN = "#AA3377"
# Okabe and Ito's colour-blind-safe hues; a second mark (the marker) tells families apart without any colour.
FAMILIES: Mapping[str, tuple[str, str]] = {
    "dense": (INK, "star"),
    "int8": ("#7A7F87", "diamond"),
    "lowrank": ("#E69F00", "triangle"),
    "stl": ("#0072B2", "circle"),
    "kronecker": ("#009E73", "square"),
    "pq": ("#D55E00", "cross"),
}
OTHER = ("#56B4E9", "hexagon")
ERROR_SHOWN = 2.0  # a candidate that errs more than this is worse than answering with zero


@dataclass(frozen=True)
class Series:
    """Points of one kind; `x_spread` are half widths of their spread, `hover` one text (lines by newlines) each."""

    label: str
    color: str
    marker: str
    x: Sequence[float]
    y: Sequence[float]
    hover: Sequence[str] = ()
    names: Sequence[str] = ()
    line: str = ""  # "", "solid", "dotted", "steps"
    hollow: bool = False
    faint: bool = False
    size: float = 9.0
    x_spread: Sequence[float] = ()
    listed: bool = True


@dataclass(frozen=True)
class Panel:
    """Two axes and what is on them."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series] = field(default_factory=list)
    x_log: bool = False
    y_log: bool = False
    y_percent: bool = False
    y_range: tuple[float, float] | None = None


def family_style(name: str) -> tuple[str, str]:
    """Colour and marker of a family, the same in every plot."""
    return FAMILIES.get(name, OTHER)


def spec_text(evaluation: Evaluation) -> str:
    """The spec in one line: "tile=2, rank=7"; "as it is" where there is nothing to choose."""
    return ", ".join(f"{k}={v}" for k, v in spec_to_json(evaluation.candidate.spec).items()) or "as it is"


def number(value: float | None) -> str:
    """Three significant digits."""
    if value is None or not math.isfinite(value):
        return "—"
    return f"{value:.3g}" if abs(value) < 1e4 else f"{value:.3e}"


def duration(seconds: float | None) -> str:
    """Seconds with the unit that fits."""
    if seconds is None or not math.isfinite(seconds):
        return "—"
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(seconds) >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def count(value: float) -> str:
    """A large count with its SI prefix."""
    for prefix, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= scale:
            return f"{value / scale:.3g} {prefix}"
    return f"{value:.3g}"


def describe(e: Evaluation, plans: Sequence[str] = ()) -> str:
    """Hover text of a candidate."""
    dense = e.latency / e.latency_ratio if e.latency_ratio > 0 else math.nan
    lines = [
        f"{e.candidate.family}: {spec_text(e)}",
        f"kernel {e.kernel or '—'}",
        f"error {'0 (exact)' if e.error == 0 else number(e.error)}",
        f"FLOPs {number(e.flops_ratio)} of dense ({count(e.cost.flops)} of {count(e.dense_cost.flops)})",
        f"time {number(e.latency_ratio)} of dense ({duration(e.latency)} against {duration(dense)}, "
        f"spread {e.latency_spread:.0%})",
        f"parameters {count(e.cost.parameters)} of {count(e.dense_cost.parameters)}",
    ]
    if e.cost.lookups:
        lines.append(f"look-ups {count(e.cost.lookups)}")
    if plans:
        lines.append(f"chosen by {', '.join(plans)}")
    return "\n".join(lines)


AXES = {"flops": "FLOPs, dense = 1", "latency": "measured latency, dense = 1"}


def ratio(e: Evaluation, axis: str) -> float:
    """Where a candidate stands on an axis."""
    return e.flops_ratio if axis == "flops" else e.latency_ratio


def layer_panel(run: Run, layer: str, axis: str) -> Panel:
    """Error of every candidate of one layer against FLOPs or latency; the front solid, the dominated ones faint."""
    done = [e for e in run.evaluations if e.candidate.layer == layer and e.failure is None]
    front = {e.candidate.hash for e in run.fronts[layer].evaluations} if layer in run.fronts else set()
    chosen: dict[str, list[str]] = {}
    for plan in run.plans:
        if layer in plan.choices:
            chosen.setdefault(plan.choices[layer].candidate.hash, []).append(plan.name)
    positive = [e.error for e in done if e.error > 0]
    floor = min(positive, default=1e-6) / 4  # where exact candidates stand: a log axis has no zero
    series = []
    stairs = _stairs([(ratio(e, axis), max(e.error, floor)) for e in done if e.candidate.hash in front])
    if stairs:
        xs, ys = zip(*stairs, strict=True)
        series.append(Series("front", "#9AA5B1", "", xs, ys, line="steps", listed=False))
    order = [*FAMILIES, *sorted({e.candidate.family for e in done} - set(FAMILIES))]
    for family in order:
        color, marker = family_style(family)
        for on_front in (False, True):
            group = [e for e in done if e.candidate.family == family and (e.candidate.hash in front) == on_front]
            if not group:
                continue
            series.append(
                Series(
                    label=family if on_front else f"{family}, dominated",
                    color=color,
                    marker=marker,
                    x=[ratio(e, axis) for e in group],
                    y=[max(e.error, floor) for e in group],
                    hover=[describe(e, chosen.get(e.candidate.hash, ())) for e in group],
                    hollow=not on_front,
                    faint=not on_front,
                    size=10 if on_front else 7,
                    x_spread=[e.latency_ratio * e.latency_spread / 2 for e in group]
                    if on_front and axis == "latency"
                    else (),
                )
            )
    rings = [e for e in done if e.candidate.hash in chosen]
    if rings:
        series.append(
            Series("chosen by a plan", PLAN, "circle", [ratio(e, axis) for e in rings],
                   [max(e.error, floor) for e in rings], hollow=True, size=17)
        )  # fmt: skip
    top = min(max(positive, default=1.0), ERROR_SHOWN)
    return Panel(
        layer, AXES[axis], "relative squared output error", series, x_log=True, y_log=True,
        y_range=(floor / 1.8, max(top * 1.8, floor * 10)),
    )  # fmt: skip


def _stairs(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points that no other one beats in these two coordinates, by x."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not kept or y < kept[-1][1]:
            kept.append((x, y))
    return kept


def model_panel(run: Run, axis: str) -> Panel:
    """The whole model's metric against FLOPs or latency; the predicted damage where the model was not measured."""
    return _measured(run, axis) if run.summary else _predicted(run, axis)


def _measured(run: Run, axis: str) -> Panel:
    assert run.summary is not None
    summary = run.summary
    series = []
    groups = [
        ("low-rank only", *FAMILIES["lowrank"], [p for p in summary.points if p.kind == "lowrank"]),
        ("int8", *FAMILIES["int8"], [p for p in summary.points if p.kind == "int8"]),
        *(
            (f"plan, {label} budget", PLAN, marker, [p for p in summary.points if p.kind == "plan" and key in p.budget])
            for key, label, marker in (("latency", "latency", "square"), ("parameters", "parameters", "diamond"),
                                       ("flops", "FLOPs", "circle"))
        ),
    ]  # fmt: skip
    for label, color, marker, points in groups:
        points = sorted(points, key=lambda p: _at(p, axis))
        lined = label == "low-rank only" or label == f"plan, {'FLOPs' if axis == 'flops' else 'latency'} budget"
        tuned = [p for p in points if p.metric_tuned is not None]
        if points:
            series.append(
                _points(f"{label}{', before fine-tuning' if tuned else ''}", color, marker, points, axis, summary.metric,
                        tuned=False, line="dotted" if lined else "", hollow=bool(tuned))
            )  # fmt: skip
        if tuned:
            series.append(
                _points(f"{label}, fine-tuned", color, marker, tuned, axis, summary.metric, tuned=True,
                        line="solid" if lined else "", hollow=False)
            )  # fmt: skip
    dense = summary.dense
    series.append(
        Series("dense", *FAMILIES["dense"], [1.0], [dense["metric"]],
               [f"dense\n{summary.metric} {dense['metric']:.4g}\n{count(dense['flops'])}FLOPs\n"
                f"{duration(dense['latency'])} per call"], ["dense"], size=14)
    )  # fmt: skip
    values = [v for s in series for v in s.y]
    percent = "accura" in summary.metric.lower() and all(0 <= v <= 1 for v in values)
    return Panel(f"{summary.metric} against {'FLOPs' if axis == 'flops' else 'latency'}", f"whole-model {AXES[axis]}",
                 summary.metric, series, y_percent=percent)  # fmt: skip


def _at(p: Point, axis: str) -> float:
    return p.flops_ratio if axis == "flops" else p.latency_ratio


def _points(
    label: str, color: str, marker: str, points: Sequence[Point], axis: str, metric: str, *, tuned: bool, line: str,
    hollow: bool,
) -> Series:  # fmt: skip
    hover = [
        f"{p.name}\n{metric} {p.metric:.4g}"
        + (f", fine-tuned {p.metric_tuned:.4g}" if p.metric_tuned is not None else "")
        + f"\nFLOPs {number(p.flops_ratio)} of dense\ntime {number(p.latency_ratio)} of dense ({duration(p.latency)})"
        + f"\nparameters {count(p.parameters)}"
        for p in points
    ]
    y = [p.metric_tuned if tuned and p.metric_tuned is not None else p.metric for p in points]
    return Series(label, color, marker, [_at(p, axis) for p in points], y, hover, [p.name for p in points], line, hollow)


def _predicted(run: Run, axis: str) -> Panel:
    series = []
    positive = [p.totals["damage"] for p in run.plans if p.totals.get("damage", 0) > 0]
    floor = min(positive, default=1e-6) / 4
    for key, label, marker in (("flops", "FLOPs", "circle"), ("latency", "latency", "square"),
                               ("parameters", "parameters", "diamond")):  # fmt: skip
        plans = sorted((p for p in run.plans if key in p.budget), key=lambda p: p.ratios[axis])
        if plans:
            series.append(
                Series(
                    f"plan, {label} budget", PLAN, marker,
                    [p.ratios[axis] for p in plans],
                    [max(p.totals["damage"], floor) for p in plans],
                    [f"{p.name}\npredicted damage {number(p.totals['damage'])}\nFLOPs {number(p.ratios['flops'])} of dense"
                     f"\ntime {number(p.ratios['latency'])} of dense" for p in plans],
                    [p.name for p in plans],
                    line="solid" if key == axis else "",
                )
            )  # fmt: skip
    series.append(Series("dense", *FAMILIES["dense"], [1.0], [floor], ["dense\nno damage"], ["dense"], size=14))
    return Panel(f"predicted damage against {'FLOPs' if axis == 'flops' else 'latency'}",
                 f"replaced layers' {AXES[axis]}", "predicted damage", series, y_log=True)  # fmt: skip
