"""The map of which family leaves the least error: a panel per size, spectra by budgets, the winner and its error."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from basis_search.errors import BadInput

COLORS = {
    "STL, fixed bases": "#c7dcf0", "STL, fitted": "#9cc3e6", "STL, bases fitted too": "#6fa8dc",
    "low rank": "#f6d5a8", "2:4 pruning": "#d5e8c8", "low rank + STL": "#d9c6e8",
}  # fmt: skip


def draw(rows_file: Path, path: Path) -> None:
    """The rows of `bench suite=stl part=map`, as its `json` holds them, onto a PNG.

    Raises:
        BadInput: the file cannot be read or holds no such rows.
    """
    try:
        rows = [row for row in json.loads(rows_file.read_text())["rows"] if row.get("winner")]
    except (OSError, ValueError, KeyError) as problem:
        raise BadInput(
            f"{rows_file} holds no rows of the map ({problem}); make it with bench part=map json=..."
        ) from None
    if not rows:
        raise BadInput(
            f"{rows_file} holds no rows with a winner; make it with bench suite=stl part=map json={rows_file}"
        )
    sizes, decays, budgets = (sorted({row[key] for row in rows}) for key in ("size", "decay", "budget"))
    figure = Figure(figsize=(3.4 * len(sizes), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, size in zip(figure.subplots(1, len(sizes), squeeze=False)[0], sizes, strict=True):
        for row in (row for row in rows if row["size"] == size):
            x, y = budgets.index(row["budget"]), decays.index(row["decay"])
            axes.add_patch(_cell(x, y, COLORS[row["winner"]]))
            name = row["winner"].replace(" + ", " +\n").replace(", ", ",\n")
            text = f"{name}\n{row[row['winner']]:.2g}"
            axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=7)
        axes.set(xlim=(0, len(budgets)), ylim=(0, len(decays)), xlabel="share of dense FLOPs")
        axes.set_title(f"{size} → {size}", fontsize=9)
        axes.set_xticks([i + 0.5 for i in range(len(budgets))], [f"{b:g}" for b in budgets])
        axes.set_yticks([i + 0.5 for i in range(len(decays))], [f"{d:g}" for d in decays])
    figure.axes[0].set_ylabel("decay of the inputs' spectrum")
    figure.savefig(path, dpi=120)


def _cell(x: float, y: float, color: str) -> Rectangle:
    return Rectangle((x, y), 1, 1, facecolor=color, edgecolor="white", linewidth=2)
