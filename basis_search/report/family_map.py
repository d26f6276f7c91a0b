"""Draw which family has the least error by FLOPs, by measured time, and on the layers of a trained model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from basis_search.errors import BadInput

COLORS = {
    "STL, fixed bases": "#c7dcf0", "STL, fitted": "#9cc3e6", "STL, bases fitted too": "#6fa8dc",
    "low rank": "#f6d5a8", "2:4 pruning": "#d5e8c8", "low rank + STL": "#d9c6e8", "int8": "#f4b6b6", "none": "#eeeeee",
}  # fmt: skip
KINDS = {
    "stl, not fitted": "STL, fixed bases", "stl": "STL, bases fitted too", "stl ternary": "STL, fitted",
    "low rank + stl": "low rank + STL",
}  # fmt: skip
"""Names in the digits example -> names in the map, where they differ."""
Rows = list[dict[str, Any]]


def draw(map_file: Path, times_file: Path, layers_file: Path, path: Path) -> None:
    """Draws three files of rows as a PNG: sizes by FLOPs (top) and by time (bottom), the digits layers to the right.

    Args:
        map_file, times_file: `json` of `bench suite=stl part=map` and of `part="'map by time'"`.
        layers_file: `json` of examples/digits/train_tiles.py layers.
        path: the picture.

    Raises:
        BadInput: a file cannot be read or has no such rows.
    """
    by_flops = _rows(map_file, ("size", "budget", "winner"), f"bench suite=stl part=map json={map_file}")
    by_time = _rows(times_file, ("size", "time", "winner"), f"bench suite=stl part=\"'map by time'\" json={times_file}")
    made = f"examples/digits/train_tiles.py layers --model DIR --json {layers_file}"
    layers = _best(_rows(layers_file, ("layer", "kind", "error"), made))
    sizes = sorted({row["size"] for row in (*by_flops, *by_time)})
    figure = Figure(figsize=(2.9 * len(sizes) + 3.6, 6.2), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, len(sizes) + 1, width_ratios=[*(1.0 for _ in sizes), 1.1])
    for column, size in enumerate(sizes):
        for line, (rows, across) in enumerate(((by_flops, "budget"), (by_time, "time"))):
            axes = figure.add_subplot(grid[line, column])
            _panel(axes, [row for row in rows if row["size"] == size], across, "decay")
            axes.set_title(f"{size} → {size}" + (f", {size} rows" if across == "time" else ""), fontsize=9)
            axes.set_xlabel("share of dense " + ("FLOPs" if across == "budget" else "time, one CPU thread"), fontsize=8)
            if column == 0:
                axes.set_ylabel("decay of the inputs' spectrum", fontsize=8)
    axes = figure.add_subplot(grid[:, len(sizes)])
    _panel(axes, layers, "budget", "layer")
    axes.set_title("digits transformer, layer by layer", fontsize=9)
    axes.set_xlabel("share of dense FLOPs", fontsize=8)
    figure.savefig(path, dpi=120)


def _rows(file: Path, keys: Sequence[str], command: str) -> Rows:
    """The rows of the file that have all keys."""
    try:
        rows = [row for row in json.loads(file.read_text())["rows"] if all(key in row for key in keys)]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise BadInput(f"{file} cannot be read ({problem}); make it with {command}") from None
    if not rows:
        raise BadInput(f"{file} holds no rows with {', '.join(keys)}; make it with {command}")
    return rows


def _best(rows: Rows) -> Rows:
    """Per layer and budget the kind of least error, as rows with a winner."""
    least: dict[tuple[str, float], dict[str, Any]] = {}
    for row in rows:
        key = row["layer"], row["budget"]
        if key not in least or row["error"] < least[key]["error"]:
            least[key] = row
    found = []
    for row in least.values():
        kind = str(row["kind"])
        name = KINDS.get(kind, kind)
        found.append({"layer": row["layer"], "budget": row["budget"], "winner": name, name: row["error"]})
    return found


def _panel(axes: Axes, rows: Rows, across: str, up: str) -> None:
    """Cells with the winner and its error; names are sorted downwards, numbers upwards."""
    columns, lines = sorted({row[across] for row in rows}), sorted({row[up] for row in rows}, reverse=up == "layer")
    for row in rows:
        x, y, winner = columns.index(row[across]), lines.index(row[up]), row["winner"]
        axes.add_patch(Rectangle((x, y), 1, 1, facecolor=COLORS.get(winner, "#ffffff"), edgecolor="white", linewidth=2))
        left = "" if row.get(winner) is None else f"\n{row[winner]:.2g}"
        by = row.get("by", "").replace("-turned", "")  # the cell is too narrow for the orientation
        detail = "" if winner.startswith(by) else f"\n{by}"
        text = winner.replace(" + ", " +\n").replace(", ", ",\n") if len(lines) < 8 else winner
        axes.text(x + 0.5, y + 0.5, text + detail + left, ha="center", va="center", fontsize=6)
    axes.set(xlim=(0, len(columns)), ylim=(0, len(lines)))
    axes.set_xticks([i + 0.5 for i in range(len(columns))], [f"{value:g}" for value in columns], fontsize=8)
    names = [value if isinstance(value, str) else f"{value:g}" for value in lines]
    axes.set_yticks([i + 0.5 for i in range(len(lines))], names, fontsize=7)
