"""Comparison of two runs: plans for the same budgets, fronts of the same layers, and settings that differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from basis_search.evaluation.candidate import Evaluation
from basis_search.evaluation.pareto import ParetoFront
from basis_search.report.model_panels import is_rate
from basis_search.report.panels import AXES, EXACT, INK, Panel, Series, describe, error_label, ratio, stairs
from basis_search.report.run_data import PlanEntry, Point, Run

OTHER_RUN = "#D55E00"


@dataclass(frozen=True)
class BudgetRow:
    """One budget that either run planned for, with the measured points if both models were measured."""

    name: str
    here: PlanEntry | None
    there: PlanEntry | None
    point_here: Point | None
    point_there: Point | None


@dataclass(frozen=True)
class LayerRow:
    """One layer that both runs searched: hypervolume, size of the front and number of evaluations of each."""

    layer: str
    volume_here: float
    volume_there: float
    front_here: int
    front_there: int
    evaluated_here: int
    evaluated_there: int


@dataclass(frozen=True)
class Comparison:
    """The comparison with the run `other`; `notes` are sentences on what cannot be compared."""

    name: str
    other: Run
    budgets: tuple[BudgetRow, ...]
    layers: tuple[LayerRow, ...]
    settings: tuple[tuple[str, str, str], ...]
    notes: tuple[str, ...]

    @property
    def measured(self) -> bool:
        """Both models were measured by the same metric."""
        return any(row.point_here and row.point_there for row in self.budgets)


def compare(run: Run, other: Run) -> Comparison:
    """Compares `run` with `other`."""
    here, there = ({p.name: p for p in r.plans} for r in (run, other))
    same_metric = run.summary is not None and other.summary is not None and run.summary.metric == other.summary.metric
    points = [{p.name: p for p in r.summary.points} if same_metric and r.summary else {} for r in (run, other)]
    names = dict.fromkeys([*here, *there])
    budgets = [BudgetRow(n, here.get(n), there.get(n), points[0].get(n), points[1].get(n)) for n in names]
    shared = [name for name in run.layers if name in other.layers]
    rows = [_layer(run, other, name) for name in shared]
    settings = tuple(
        (key, _text(a), _text(b)) for key, a, b in _differences(_flat(run.config), _flat(other.config)) if key != "run"
    )
    return Comparison(
        _name(run, other), other, tuple(budgets), tuple(rows), settings, tuple(_notes(run, other, shared))
    )


def _name(run: Run, other: Run) -> str:
    """The other run's folder, with its parent where both folders have one name."""
    path = other.path.resolve()
    return path.name if path.name != run.path.resolve().name else f"{path.parent.name}/{path.name}"


def _layer(run: Run, other: Run, name: str) -> LayerRow:
    fronts = [r.fronts.get(name, ParetoFront()) for r in (run, other)]
    counts = [sum(e.candidate.layer == name and not e.stopped for e in r.evaluations) for r in (run, other)]
    return LayerRow(name, fronts[0].hypervolume(), fronts[1].hypervolume(), len(fronts[0]), len(fronts[1]), *counts)


def _notes(run: Run, other: Run, shared: list[str]) -> list[str]:
    notes = []
    devices = [{e.device for e in r.evaluations} for r in (run, other)]
    if devices[0] != devices[1]:
        texts = [
            ", ".join(sorted(f"{d.name}, {d.threads} threads, torch {d.torch}" for d in found)) for found in devices
        ]
        notes.append(
            f"Latencies were measured on different devices ({texts[0]}; in the other run {texts[1]}): compare the "
            "ratios to dense, not the seconds."
        )
    timed = [{e.timed for e in r.evaluations if e.failure is None} for r in (run, other)]
    if timed[0] != timed[1] and all(timed):
        here, there = (" and ".join(sorted(found)) for found in timed)
        notes.append(
            f"Latencies are those of {here} calls here and of {there} calls in the other run (graph: replayed from a "
            "CUDA graph): they are not comparable."
        )
    apart = [n for n in (*run.layers, *other.layers) if n not in shared]
    if apart:
        notes.append(
            f"{len(apart)} layers were searched in only one of the runs, such as {apart[0]}; they are not compared."
        )
    hashes = [{e.candidate.layer: e.layer_hash for e in r.evaluations} for r in (run, other)]
    changed = [n for n in shared if hashes[0][n] != hashes[1][n]]
    if changed:
        notes.append(
            f"{len(changed)} layers of the same name differ in their weights or captured inputs, such as {changed[0]}: "
            "their errors are not comparable."
        )
    return notes


def layer_panel(run: Run, other: Run, layer: str, axis: str, name: str) -> Panel:
    """The fronts of one layer in both runs."""
    found = [run.fronts.get(layer, ParetoFront()).evaluations, other.fronts.get(layer, ParetoFront()).evaluations]
    floor = min((e.searched_error for es in found for e in es if e.searched_error > EXACT), default=1e-6) / 4
    series: list[Series] = []
    for label, color, es in (("this run", INK, found[0]), (name, OTHER_RUN, found[1])):
        series += _front(label, color, es, axis, floor, hollow=label != "this run")
    top = max((e.searched_error for es in found for e in es), default=1.0)
    return Panel(
        layer, AXES[axis], error_label(e for es in found for e in es), series, x_log=True, y_log=True,
        y_range=(floor / 1.8, max(min(top, 2.0) * 1.8, floor * 10)),
    )  # fmt: skip


def _front(label: str, color: str, es: tuple[Evaluation, ...], axis: str, floor: float, hollow: bool) -> list[Series]:
    if not es:
        return []
    xs, ys = zip(*stairs([(ratio(e, axis), max(e.searched_error, floor)) for e in es]), strict=True)
    points = Series(
        label, color, "circle", [ratio(e, axis) for e in es], [max(e.searched_error, floor) for e in es],
        [f"{label}\n{describe(e)}" for e in es], hollow=hollow, group=label,
    )  # fmt: skip
    return [Series(label, color, "", xs, ys, line="steps", group=label), points]


def model_panel(against: Comparison, axis: str) -> Panel:
    """All plans of both runs: the metric if both models were measured by it, else the predicted damage."""
    series = []
    rate = against.measured and against.other.summary is not None and is_rate(against.other.summary)
    for label, color, side in (("this run", INK, "here"), (against.name, OTHER_RUN, "there")):
        found: list[tuple[float, float, str]] = []
        for row in against.budgets:
            plan, point = (row.here, row.point_here) if side == "here" else (row.there, row.point_there)
            if against.measured and point is not None:
                value = point.metric if point.metric_tuned is None else point.metric_tuned
                x = point.flops_ratio if axis == "flops" else point.latency_ratio
                found.append((x, max(1 - value, 1e-4) if rate else value, row.name))
            elif not against.measured and plan is not None:
                found.append((plan.ratios[axis], max(plan.totals["damage"], EXACT), row.name))
        found.sort()
        series.append(
            Series(label, color, "circle", [x for x, _, _ in found], [y for _, y, _ in found],
                   [f"{label}\n{name}" for _, _, name in found], [name for _, _, name in found],
                   hollow=side == "there", group=label)
        )  # fmt: skip
    metric = against.other.summary.metric if against.measured and against.other.summary else "predicted damage"
    return Panel(
        f"{metric} of both runs", AXES[axis], f"1 - {metric}" if rate else metric, series,
        y_log=rate or not against.measured,
    )  # fmt: skip


def _flat(config: str) -> dict[str, Any]:
    """Dotted key -> value of a YAML text; {} for anything else."""
    try:
        found = yaml.safe_load(config)
    except yaml.YAMLError:
        return {}
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            flat[prefix] = value

    walk("", found)
    return flat if isinstance(found, Mapping) else {}


def _differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    keys = dict.fromkeys([*here, *there])
    return [(k, here.get(k, "—"), there.get(k, "—")) for k in keys if here.get(k, "—") != there.get(k, "—")]


def _text(value: Any) -> str:
    return "null" if value is None else str(value)
