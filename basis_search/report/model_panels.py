"""Panels of the whole model: the metric against FLOPs and latency, or the predicted damage if it was not measured."""

from __future__ import annotations

from basis_search.evaluation.candidate import Evaluation
from basis_search.planning.amounts import damage_of
from basis_search.report.panels import AXES, EXACT, PLAN, Panel, Series, count, duration, family_style, number
from basis_search.report.run_data import Point, Run, Summary

RATE_FLOOR = 1e-4  # the place of an error rate of 0 on the logarithmic scale
RATE_TICKS = (1.0, 0.8, 0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002, 0.0001)
BUDGETS = (("flops", "FLOPs", "circle"), ("latency", "latency", "square"), ("parameters", "parameter", "diamond"))


def model_panel(run: Run, axis: str) -> Panel:
    """The metric against FLOPs or latency; the predicted damage if the model was not measured."""
    return _measured(run, axis) if run.summary else _predicted(run, axis)


def _measured(run: Run, axis: str) -> Panel:
    assert run.summary is not None
    summary = run.summary
    dense = summary.dense
    values = [dense["metric"], *metrics(summary)]
    rate = is_rate(summary)

    def place(value: float) -> float:
        return max(1 - value, RATE_FLOOR) if rate else value

    series = []
    tuned_at_all = any(p.metric_tuned is not None for p in summary.points)
    groups = [
        ("low-rank only", *_look("lowrank"), [p for p in summary.points if p.kind == "lowrank"], True),
        ("int8", *_look("int8"), [p for p in summary.points if p.kind == "int8"], False),
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
        Series("dense", *_look("dense"), [1.0], [place(dense["metric"])], [text], ["dense"], size=14, group="dense")
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
        note=note + " The scale is logarithmic in the error rate.",
    )  # fmt: skip


def metrics(summary: Summary) -> list[float]:
    """The metric at every point, before and after fine-tuning."""
    return [v for p in summary.points for v in (p.metric, p.metric_tuned) if v is not None]


def is_rate(summary: Summary) -> bool:
    """The metric is an accuracy: shown in percent, on a scale logarithmic in the error rate."""
    values = [summary.dense["metric"], *metrics(summary)]
    return "accura" in summary.metric.lower() and all(0 <= v <= 1 for v in values)


def _look(family: str) -> tuple[str, str]:
    """Colour and marker of a family's points."""
    style = family_style(family)
    return style.light, style.marker


def _at(p: Point, axis: str) -> float:
    return p.flops_ratio if axis == "flops" else p.latency_ratio


def _point_text(p: Point, metric: str) -> str:
    tuned = "" if p.metric_tuned is None else f", fine-tuned {p.metric_tuned:.4g}"
    return (
        f"{p.name}\n{metric} {p.metric:.4g}{tuned}\nFLOPs {number(p.flops_ratio)} of dense ({count(p.flops)})\n"
        f"time {number(p.latency_ratio)} of dense ({duration(p.latency)})\nparameters {count(p.parameters)}"
    )


def _predicted(run: Run, axis: str) -> Panel:
    positive = [p.totals["damage"] for p in run.plans if p.totals["damage"] > EXACT]
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
        series.append(Series("int8", *_look("int8"), [x], [max(damage, floor)], [text], ["int8"], group="int8"))
        floor = min(floor, damage / 4) if damage > EXACT else floor
    dense = Series("dense", *_look("dense"), [1.0], [floor], ["dense\nno damage"], ["dense"], size=14, group="dense")
    title = f"predicted damage against {AXES[axis].partition(',')[0]}"
    return Panel(
        title, f"replaced layers' {AXES[axis]}", "predicted damage", [*series, dense], y_log=True,
        note="Dense has no damage; it is drawn at the lower edge.",
    )  # fmt: skip


def _everywhere(run: Run, family: str, axis: str) -> tuple[float, float] | None:
    """(ratio, damage) with the family's candidate of least damage in every layer; None if a layer has none."""
    best: dict[str, Evaluation] = {}
    for e in run.evaluations:
        name = e.candidate.layer
        if (
            e.candidate.family == family
            and e.failure is None
            and (name not in best or damage_of(e) < damage_of(best[name]))
        ):
            best[name] = e
    if set(best) != set(run.layers):
        return None
    damage = sum(map(damage_of, best.values()))
    if axis == "flops":
        return sum(e.cost.flops for e in best.values()) / sum(e.dense_cost.flops for e in best.values()), damage
    return sum(e.timed_latency for e in best.values()) / sum(
        e.timed_latency / e.timed_ratio for e in best.values()
    ), damage
