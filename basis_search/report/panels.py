"""What the report draws, as plain points: the interactive page and the pictures show the same panels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from basis_search.evaluate import Evaluation
from basis_search.family import spec_to_json
from basis_search.report.run import Point, Run, Summary

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
    """Points of one kind; `x_spread` are half widths of their spread, `hover` one text (lines by newlines) each.

    Series of one `group` stand under one entry of the legend; `line` is "", "solid", "dotted" or "steps".
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
    """Two axes and what is on them; `y_ticks` are (position, text), bottom and top in `y_range`."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series] = field(default_factory=list)
    x_log: bool = False
    y_log: bool = False
    y_ticks: Sequence[tuple[float, str]] = ()
    y_range: tuple[float, float] | None = None
    note: str = ""


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
        series.append(Series("front", "#9AA5B1", "", xs, ys, line="steps"))
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
                    group=family,
                )
            )
    rings = [e for e in done if e.candidate.hash in chosen]
    if rings:
        series.append(
            Series("chosen by a plan", PLAN, "circle", [ratio(e, axis) for e in rings],
                   [max(e.error, floor) for e in rings], hollow=True, size=17, group="chosen by a plan")
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
    dense = summary.dense
    values = [dense["metric"], *(v for p in summary.points for v in (p.metric, p.metric_tuned) if v is not None)]
    rate = is_rate(summary)

    def place(value: float) -> float:
        return max(1 - value, RATE_FLOOR) if rate else value

    series = []
    tuned_at_all = any(p.metric_tuned is not None for p in summary.points)
    groups = [
        ("low-rank only", *FAMILIES["lowrank"], [p for p in summary.points if p.kind == "lowrank"], True),
        ("int8", *FAMILIES["int8"], [p for p in summary.points if p.kind == "int8"], False),
        *(
            (f"plan for a {label} budget", PLAN, marker,
             [p for p in summary.points if p.kind == "plan" and key in p.budget], key == axis)
            for key, label, marker in reversed(BUDGETS)
        ),
    ]  # fmt: skip
    for label, color, marker, points, lined in groups:
        points = sorted(points, key=lambda p: _at(p, axis))
        for tuned in (False, True):
            shown = [p for p in points if p.metric_tuned is not None] if tuned else points
            if not shown:
                continue
            series.append(
                Series(
                    f"{label}, {'fine-tuned' if tuned else 'not fine-tuned'}", color, marker,
                    [_at(p, axis) for p in shown],
                    [place(p.metric_tuned if tuned and p.metric_tuned is not None else p.metric) for p in shown],
                    [_point_text(p, summary.metric) for p in shown], [p.name for p in shown],
                    line=("solid" if tuned or not tuned_at_all else "dotted") if lined else "",
                    hollow=tuned_at_all and not tuned, group=label,
                )
            )  # fmt: skip
    text = f"dense\n{summary.metric} {dense['metric']:.4g}\n{count(dense['flops'])}FLOPs\n{duration(dense['latency'])}"
    series.append(
        Series("dense", *FAMILIES["dense"], [1.0], [place(dense["metric"])], [text], ["dense"], size=14, group="dense")
    )
    title = f"{summary.metric} against {AXES[axis].partition(',')[0]}"
    note = "Filled: fine-tuned after the replacement; hollow: not." if tuned_at_all else "Not fine-tuned."
    if not rate:
        return Panel(title, f"whole-model {AXES[axis]}", summary.metric, series, note=note)
    errors = [place(v) for v in values]
    span = max(errors) * 1.25, min(errors) / 1.25
    ticks = [(e, f"{100 * (1 - e):g} %") for e in RATE_TICKS if span[1] <= e <= span[0]]
    return Panel(
        title, f"whole-model {AXES[axis]}", summary.metric, series, y_log=True, y_ticks=ticks, y_range=span,
        note=note + " The scale is logarithmic in what is wrong.",
    )  # fmt: skip


RATE_FLOOR = 1e-4
RATE_TICKS = (1.0, 0.8, 0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002, 0.0001)
BUDGETS = (("flops", "FLOPs", "circle"), ("latency", "latency", "square"), ("parameters", "parameter", "diamond"))


def is_rate(summary: Summary) -> bool:
    """The metric is a share of right answers: shown in percent, on a scale that tells 98 % from 99 %."""
    values = [summary.dense["metric"], *(v for p in summary.points for v in (p.metric, p.metric_tuned) if v is not None)]
    return "accura" in summary.metric.lower() and all(0 <= v <= 1 for v in values)


def _at(p: Point, axis: str) -> float:
    return p.flops_ratio if axis == "flops" else p.latency_ratio


def _point_text(p: Point, metric: str) -> str:
    tuned = "" if p.metric_tuned is None else f", fine-tuned {p.metric_tuned:.4g}"
    return (
        f"{p.name}\n{metric} {p.metric:.4g}{tuned}\nFLOPs {number(p.flops_ratio)} of dense ({count(p.flops)})\n"
        f"time {number(p.latency_ratio)} of dense ({duration(p.latency)})\nparameters {count(p.parameters)}"
    )


def _predicted(run: Run, axis: str) -> Panel:
    positive = [p.totals["damage"] for p in run.plans if p.totals["damage"] > 0]
    floor = min(positive, default=1e-6) / 4
    series = []
    for key, label, marker in BUDGETS:
        plans = sorted((p for p in run.plans if key in p.budget), key=lambda p: p.ratios[axis])
        if not plans:
            continue
        name = f"plan for a {label} budget"
        texts = [
            f"{p.name}\npredicted damage {number(p.totals['damage'])}\nFLOPs {number(p.ratios['flops'])} of dense\n"
            f"time {number(p.ratios['latency'])} of dense"
            for p in plans
        ]
        series.append(
            Series(name, PLAN, marker, [p.ratios[axis] for p in plans], [max(p.totals["damage"], floor) for p in plans],
                   texts, [p.name for p in plans], line="solid" if key == axis else "", group=name)
        )  # fmt: skip
    int8 = _everywhere(run, "int8", axis)
    if int8 is not None:
        x, damage = int8
        text = f"int8 in every layer\npredicted damage {number(damage)}\n{AXES[axis]}: {number(x)}"
        series.append(Series("int8", *FAMILIES["int8"], [x], [max(damage, floor)], [text], ["int8"], group="int8"))
        floor = min(floor, damage / 4) if damage > 0 else floor
    dense = Series("dense", *FAMILIES["dense"], [1.0], [floor], ["dense\nno damage"], ["dense"], size=14, group="dense")
    return Panel(
        f"predicted damage against {AXES[axis].partition(',')[0]}", f"replaced layers' {AXES[axis]}", "predicted damage",
        [*series, dense], y_log=True, note="Dense does no damage and stands at the lower edge.",
    )  # fmt: skip


def _everywhere(run: Run, family: str, axis: str) -> tuple[float, float] | None:
    """(ratio, damage) with the family's least erring candidate in every layer; None where one layer has none."""
    best: dict[str, Evaluation] = {}
    for e in run.evaluations:
        name = e.candidate.layer
        if e.candidate.family == family and e.failure is None and (name not in best or e.error < best[name].error):
            best[name] = e
    if set(best) != set(run.layers):
        return None
    damage = sum(e.sensitivity * e.error for e in best.values())
    if axis == "flops":
        return sum(e.cost.flops for e in best.values()) / sum(e.dense_cost.flops for e in best.values()), damage
    return sum(e.latency for e in best.values()) / sum(e.latency / e.latency_ratio for e in best.values()), damage
