"""Render the report as one HTML file that needs no network; the template escapes every text from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from basis_search.planning.amounts import damage_of
from basis_search.report import clocks, findings
from basis_search.report.comparison import Comparison, compare
from basis_search.report.comparison import layer_panel as against_layer
from basis_search.report.comparison import model_panel as against_model
from basis_search.report.interactive import DARK, figure, get_plotlyjs, timeline
from basis_search.report.model_panels import is_rate, model_panel
from basis_search.report.panels import count, duration, family_style, layer_panel, number, spec_text
from basis_search.report.run_data import PlanEntry, Point, Run

HERE = Path(__file__).parent
DAMAGE_IN_METRIC = "the squared change of the model's output that each layer's error causes in its output metric"
DAMAGE_BY_SENSITIVITY = "sensitivity x relative squared output error"


def render(run: Run, other: Run | None = None) -> str:
    """The page's HTML; compared with `other` if given."""
    against = None if other is None else compare(run, other)
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": number,
        "duration": duration,
        "count": count,
        "spec": spec_text,
        "damage": damage_of,
    }
    environment.globals |= {"paint": _paint}
    figures: dict[str, Any] = {
        "model": {axis: figure(model_panel(run, axis)) for axis in ("flops", "latency")} if run.has_model else None,
        "layers": [
            {axis: figure(layer_panel(run, name, axis)) for axis in ("flops", "latency")} for name in run.layers
        ],
        "timeline": timeline(run),
        "against": None if against is None else _against_figures(run, against),
    }
    metric = run.summary.metric if run.summary else "predicted damage"
    return environment.get_template("page.html").render(
        run=run,
        name=run.path.resolve().name,
        metric=metric,
        damage=DAMAGE_IN_METRIC if any(e.damage is not None for e in run.evaluations) else DAMAGE_BY_SENSITIVITY,
        percent=run.summary is not None and is_rate(run.summary),
        note=model_panel(run, "flops").note if run.has_model else "",
        rows=_plan_rows(run),
        limited=any(plan.unlimited for plan in run.plans),
        why=findings.why_slower(run),
        families=findings.families(run),
        clocks=clocks.by_family(run.evaluations),
        which_counts=clocks.which_counts(run.evaluations),
        uncaptured=clocks.uncaptured(run.evaluations),
        spent=findings.spent(run.entries),
        failures=findings.failures(run.evaluations),
        stopped=findings.stopped(run.evaluations),
        setup=findings.setup(run),
        against=against,
        timed=figures["timeline"] is not None,
        figures=_script_json(figures),
        dark=_script_json(DARK),
        plotly=Markup(get_plotlyjs()),
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),
        script=Markup((HERE / "page.js").read_text(encoding="utf-8")),
    )


def _against_figures(run: Run, against: Comparison) -> dict[str, Any]:
    axes = ("flops", "latency")
    return {
        "model": {axis: figure(against_model(against, axis)) for axis in axes} if against.budgets else None,
        "layers": [
            {axis: figure(against_layer(run, against.other, row.layer, axis, against.name)) for axis in axes}
            for row in against.layers
        ],
    }


def _paint(family: str) -> str:
    """CSS of a family's colour in the light and the dark theme."""
    style = family_style(family)
    return f"background:{style.light};background:light-dark({style.light},{style.dark})"


def _plan_rows(run: Run) -> list[tuple[str, PlanEntry | None, Point | None]]:
    """Plans and measured points joined by name, in the order of the files."""
    points = {p.name: p for p in run.summary.points} if run.summary else {}
    plans = {p.name: p for p in run.plans}
    return [(name, plans.get(name), points.get(name)) for name in dict.fromkeys([*plans, *points])]


def _script_json(value: Any) -> Markup:
    """JSON that cannot end the script element around it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
