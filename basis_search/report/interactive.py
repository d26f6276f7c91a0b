"""Panels as plotly figures: JSON that page.js draws in the light or dark theme of the reader."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from basis_search.evaluation.candidate import Evaluation
from basis_search.families import FAMILIES
from basis_search.report.model_panels import model_panel
from basis_search.report.panels import INK, NOT_INSTALLED, PLAN, Panel, Series, family_style, layer_panel
from basis_search.report.run_data import Run

__all__ = ["figure", "get_plotlyjs", "plots", "timeline"]

GRID = "#E4E7EB"
MUTED = "#616E7C"
# Light paper's colour -> dark paper's; the page swaps them, so every colour of a figure must be one of these.
DARK = {
    INK: "#E6EAEF",
    MUTED: "#9AA7B4",
    GRID: "#2B333D",
    "#9AA5B1": "#5C6875",
    PLAN: "#E27FB8",
} | {style.light: style.dark for style in (NOT_INSTALLED, *(family.STYLE for family in FAMILIES.values()))}
SYMBOLS = {"triangle": "triangle-up", "cross": "x", "plus": "cross", "": "circle"}
TICKS = [m * 10.0**e for e in range(-4, 4) for m in (1, 2, 5)]


def figure(panel: Panel) -> dict[str, Any]:
    """A panel as plotly's JSON; a dotted line at x = 1 marks dense."""
    x_axis = _axis(panel.x_label)
    if panel.x_log:
        low, high = _span([x for s in panel.series for x in s.x])
        ticks = [t for t in TICKS if low <= t <= high]
        x_axis |= {"type": "log", "range": [math.log10(low), math.log10(high)], "tickvals": ticks,
                   "ticktext": [f"{t:g}" for t in ticks]}  # fmt: skip
    else:
        x_axis |= {"rangemode": "tozero"}
    y_axis = _axis(panel.y_label)
    if panel.y_log:
        # plotly draws powers of ten a quarter larger than the given size
        y_axis |= {"type": "log", "exponentformat": "power", "dtick": 1, "tickfont": {"size": 11}}
    if panel.y_range is not None:
        y_axis |= {"range": [math.log10(v) if panel.y_log else v for v in panel.y_range]}
    low, high = panel.y_range or _span([y for s in panel.series for y in s.y], around=())
    if panel.y_log and 0.01 < high / low < 100:  # too few powers of ten for the only ticks
        y_axis |= {"dtick": "D2", "tickfont": {"size": 13}}
    if panel.y_ticks:
        y_axis |= {"tickvals": [v for v, _ in panel.y_ticks], "ticktext": [text for _, text in panel.y_ticks]}
    dense_at_one = {"type": "line", "x0": 1, "x1": 1, "y0": 0, "y1": 1, "yref": "paper",
                    "line": {"color": MUTED, "width": 1, "dash": "dot"}}  # fmt: skip
    layout = _layout(x_axis, y_axis) | {
        "height": 400,
        "margin": {"l": 62, "r": 14, "t": 12, "b": 48},
        "hovermode": "closest",
        "shapes": [dense_at_one],
    }
    return {"data": [_trace(series) for series in panel.series], "layout": layout}


def _layout(x_axis: dict[str, Any], y_axis: dict[str, Any]) -> dict[str, Any]:
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": INK, "size": 13, "family": "system-ui, sans-serif"},
        "hoverlabel": {"align": "left", "font": {"size": 12, "family": "system-ui, sans-serif"}},
        "showlegend": False,  # the page has one legend per pair of plots
        "xaxis": x_axis,
        "yaxis": y_axis,
    }


def _axis(label: str) -> dict[str, Any]:
    return {
        "title": {"text": html.escape(label), "font": {"size": 13, "color": MUTED}},
        "gridcolor": GRID,
        "zeroline": False,
        "linecolor": MUTED,
        "tickcolor": MUTED,
        "automargin": True,
    }


def _span(values: Sequence[float], around: Sequence[float] = (1.0,)) -> tuple[float, float]:
    """Range of a log axis that contains the positive values and those of `around`."""
    inside = [*(v for v in values if v > 0 and math.isfinite(v)), *around] or [1.0]
    return min(inside) / 1.25, max(inside) * 1.25


def _trace(series: Series) -> dict[str, Any]:
    modes = ["lines"] if series.line else []
    marker: dict[str, Any] = {}
    if series.marker:
        modes.append("markers")
        symbol = SYMBOLS.get(series.marker, series.marker)
        marker = {
            "symbol": f"{symbol}-open" if series.hollow else symbol,
            "size": series.size,
            "color": series.color,
            "line": {"width": 1.6, "color": series.color} if series.hollow else {"width": 0},
        }
    line = {"color": series.color, "width": 1.6}
    if series.line == "dotted":
        line["dash"] = "dot"
    if series.line == "steps":
        line["shape"] = "hv"
    spread = {"error_x": {"type": "data", "array": list(series.x_spread), "thickness": 1, "width": 0}}
    return {
        "type": "scatter",
        "x": list(series.x),
        "y": list(series.y),
        "name": html.escape(series.label),
        "legendgroup": html.escape(series.group),
        "mode": "+".join(modes),
        "marker": marker,
        "line": line,
        "opacity": 0.55 if series.faint else 1.0,
        "hoverinfo": "text" if series.hover else "skip",
        "hovertext": [html.escape(text).replace("\n", "<br>") for text in series.hover],
    } | (spread if series.x_spread else {})


def plots(run: Run, layers: int) -> dict[str, go.Figure]:
    """The panels of the whole model and of the first `layers` layers, by name."""
    found = {}
    for axis in ("flops", "latency"):
        if run.has_model:
            found[f"model/{axis}"] = go.Figure(figure(model_panel(run, axis)))
        for name in run.layers[:layers]:
            found[f"layers/{name}/{axis}"] = go.Figure(figure(layer_panel(run, name, axis)))
    return found


def _ended(evaluation: Evaluation) -> str:
    """ "stopped" or "failed" for an evaluation that did not complete, else ""."""
    return "stopped" if evaluation.stopped else "failed" if evaluation.failure is not None else ""


def timeline(run: Run) -> dict[str, Any] | None:
    """One row per worker, one bar per evaluation; None if no evaluation has a time."""
    records = [r for r in run.entries if r.finished > r.started > 0]
    if not records:
        return None
    start = min(r.started for r in records)
    workers = sorted({r.worker for r in records})
    traces: list[dict[str, Any]] = []
    for family in dict.fromkeys(r.evaluation.candidate.family for r in records):
        for how in ("", "stopped", "failed"):
            group = [r for r in records if r.evaluation.candidate.family == family and _ended(r.evaluation) == how]
            if not group:
                continue
            texts = (
                f"trial {r.trial}, {r.evaluation.candidate.layer}\n{family}, "
                f"{r.finished - r.started:.2f} s\n{r.evaluation.failure or ''}".strip()
                for r in group
            )
            traces.append({
                "type": "bar",
                "orientation": "h",
                "name": html.escape(f"{family}, {how}" if how else family),
                "legendgroup": html.escape(family),
                "y": [f"worker {r.worker}" for r in group],
                "base": [r.started - start for r in group],
                "x": [r.finished - r.started for r in group],
                "marker": {
                    "color": family_style(family).light,
                    "line": {"width": 0},
                    "pattern": {"shape": {"": "", "stopped": ".", "failed": "/"}[how]},
                },
                "hoverinfo": "text",
                "hovertext": [html.escape(text).replace("\n", "<br>") for text in texts],
            })  # fmt: skip
    by_worker = {
        "categoryorder": "array",
        "categoryarray": [f"worker {w}" for w in reversed(workers)],
        "showgrid": False,
    }
    layout = _layout(_axis("seconds since the first evaluation began"), _axis("") | by_worker) | {
        "barmode": "overlay",
        "height": 74 + 34 * len(workers),
        "margin": {"l": 70, "r": 14, "t": 8, "b": 44},
        "bargap": 0.25,
    }
    return {"data": traces, "layout": layout}
