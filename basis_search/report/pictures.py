"""Draw panels as PNG files with matplotlib, which needs no browser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from basis_search.report.interactive import GRID, MUTED, TICKS
from basis_search.report.model_panels import model_panel
from basis_search.report.panels import INK, Panel, layer_panel
from basis_search.report.run_data import Run

LAYERS_SHOWN = 24
MARKERS = {
    "star": "*", "diamond": "D", "triangle": "^", "circle": "o", "square": "s", "cross": "X", "hexagon": "h",
    "pentagon": "p", "plus": "P", "triangle-down": "v", "triangle-left": "<", "triangle-right": ">",
}  # fmt: skip
LINES = {"": "none", "solid": "-", "dotted": ":", "steps": "-"}


def write_all(run: Run, folder: Path) -> list[Path]:
    """Writes layers.png, and front_flops.png and front_latency.png if there are plans or a measured model."""
    paths = []
    for axis in ("flops", "latency") if run.has_model else ():
        panel = model_panel(run, axis)
        figure = Figure(figsize=(7.2, 4.6), dpi=160, layout="constrained")
        axes = figure.subplots()
        draw(panel, axes)
        title = panel.title[:1].upper() + panel.title[1:]
        axes.set_title(title, loc="left", fontsize=12, pad=20, color=INK, parse_math=False)
        figure.legend(**_legend(axes), loc="outside lower center", ncols=3, frameon=False, fontsize=9, labelcolor=INK)
        axes.annotate(panel.note, (0, 1), (0, 4), xycoords="axes fraction", textcoords="offset points", fontsize=8.5,
                      color=MUTED, parse_math=False)  # fmt: skip
        paths.append(_save(figure, folder / f"front_{axis}.png"))
    paths.append(_layers(run, folder / "layers.png"))
    return paths


def _layers(run: Run, path: Path) -> Path:
    """A pair of panels per layer, FLOPs and latency, two pairs per row; fixed positions are faster than a layout."""
    names = run.layers[:LAYERS_SHOWN]
    columns = 2 if len(names) > 1 else 1
    rows = -(-len(names) // columns)
    width, height, top, bottom = 7.0 * columns, 2.6 * rows + 0.85, 0.3, 0.55  # inches
    figure = Figure(figsize=(width, height), dpi=130)
    labels: dict[str, Any] = {}
    for index, name in enumerate(names):
        row, column = divmod(index, columns)
        for offset, axis in enumerate(("flops", "latency")):
            left, low = 7.0 * column + 0.65 + 3.2 * offset, height - top - 2.6 * row - 2.1
            axes = figure.add_axes((left / width, low / height, 2.9 / width, 1.95 / height))
            draw(layer_panel(run, name, axis), axes, scale=0.62)
            if offset == 0:
                axes.set_ylabel("error", fontsize=8.5, color=MUTED)
                axes.set_title(name, loc="left", fontsize=9.5, color=INK, parse_math=False)
            else:
                axes.set_ylabel("")
                axes.tick_params(labelleft=False)
            found = _legend(axes)
            for label, handle in zip(found["labels"], found["handles"], strict=True):
                if label not in labels or handle.get_markerfacecolor() != "none":
                    labels[label] = handle
    if len(run.layers) > len(names):
        figure.text(0.5, 0.05 / height, f"the first {len(names)} of {len(run.layers)} layers", ha="center", fontsize=9,
                    color=MUTED)  # fmt: skip
    ncols = max(1, len(labels)) if len(labels) <= 7 else 5 * columns
    figure.legend(labels.values(), labels.keys(), loc="lower center", ncols=ncols, frameon=False,
                  fontsize=9, labelcolor=INK, bbox_to_anchor=(0.5, (bottom - 0.4) / height))  # fmt: skip
    return _save(figure, path)


def draw(panel: Panel, axes: Any, scale: float = 1.0) -> None:
    """Draws a panel on matplotlib's axes; `scale` applies to markers and text."""
    for series in panel.series:
        drawstyle = "steps-post" if series.line == "steps" else "default"
        axes.plot(
            series.x, series.y, linestyle=LINES[series.line], drawstyle=drawstyle, color=series.color,
            marker=MARKERS.get(series.marker, "") or "none", markersize=series.size * 0.8 * scale,
            markerfacecolor="none" if series.hollow else series.color, markeredgecolor=series.color,
            markeredgewidth=1.2 * scale if series.hollow else 0, linewidth=1.4 * scale,
            alpha=0.5 if series.faint else 1.0,
            label=series.group or "_", zorder=2 if series.faint else 3,
        )  # fmt: skip
        if series.x_spread:
            axes.errorbar(series.x, series.y, xerr=series.x_spread, fmt="none", ecolor=series.color,
                          elinewidth=0.9 * scale, zorder=2)  # fmt: skip
    axes.axvline(1, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)), zorder=1)
    if panel.x_log:
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.xaxis.set_major_locator(FixedLocator(_few([t for t in TICKS if low <= t <= high], 7 if scale == 1 else 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(left=0)
    if panel.y_log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_minor_locator(NullLocator())
    if panel.y_ticks:
        axes.set_yticks([v for v, _ in panel.y_ticks], [text for _, text in panel.y_ticks])
    if panel.y_range is not None and all(map(math.isfinite, panel.y_range)):
        axes.set_ylim(*panel.y_range)
    small = 8.5 if scale == 1 else 7.5
    axes.set_xlabel(panel.x_label, fontsize=small + 1, color=MUTED, parse_math=False)
    axes.set_ylabel(panel.y_label, fontsize=small + 1, color=MUTED, parse_math=False)
    axes.tick_params(labelsize=small, colors=MUTED, length=3, width=0.8)
    axes.tick_params(which="minor", length=0)
    axes.grid(True, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#9AA5B1")


def _legend(axes: Any) -> dict[str, list[Any]]:
    """One entry per group of series, a filled one if there is one."""
    found: dict[str, Any] = {}
    for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
        found[label] = handle  # filled series follow hollow ones
    return {"handles": list(found.values()), "labels": list(found)}


def _few(ticks: Sequence[float], most: int) -> Sequence[float]:
    """At most about `most` ticks; of more, the powers of ten."""
    if len(ticks) <= most:
        return ticks
    tens = [t for t in ticks if abs(math.log10(t) - round(math.log10(t))) < 1e-9]
    return tens if len(tens) >= 2 else ticks[:: -(-len(ticks) // most)]


def _save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure)
    figure.savefig(path, facecolor="white", metadata={"Software": None})
    return path
