"""Stored bases by rank: residual ||T - [[U, V, W]]||^2 / ||T||^2 against operations of encode and decode."""

from __future__ import annotations

from typing import Any

from basis_search.families import dense, stl
from basis_search.families.stl.bases import bases
from basis_search.families.stl.cost import per_tile
from basis_search.families.stl.spec import BEST_EXACT, EXACT
from basis_search.layers.layer import LayerShape
from basis_search.schemes.numerical import approximation, ternary_catalogue

Rows = list[dict[str, Any]]

WIDTHS = (64, 128, 256, 512, 1024, 2048, 4096)
BUDGETS = (0.75, 0.6, 0.5, 0.4)
LABELS = {"approximate": "real", "ternary": "ternary"}


def stored_bases(device: str, threads: int) -> Rows:
    """Stored approximate bases against r of the nmp terms of the plain product, whose residual is 1 - r / nmp."""
    rows: Rows = []
    for folder in sorted(path.name for path in approximation.FOLDER.iterdir() if path.is_dir()):
        n, m, p = map(int, folder.split("x"))
        for rank in approximation.known_ranks(n, m, p):
            stored, subset = approximation.load(n, m, p, rank), 1 - rank / (n * m * p)
            rows.append(
                {
                    "case": f"{folder} rank {rank}",
                    "residual": stored.residual,
                    "baseline": "subset of the plain terms",
                    "ratio": stored.residual / subset,
                    "coefficient": stored.coefficient,
                    "ridge": stored.ridge,
                    "found": stored.found,
                }
            )
        if n == m == p:
            rows.append({"case": f"{folder} rank {EXACT[BEST_EXACT[n]][1]}, {BEST_EXACT[n]}", "residual": 0.0})
    return rows


def cheap_bases(device: str, threads: int) -> Rows:
    """Per rank: operations to encode a tile of X and decode one of Y, by matrices (real) and by programs (ternary).

    Then the basis of least residual, by a square layer's width and FLOP budget.
    """
    rows: Rows = []
    for tile in (2, 3, 4):
        real = _points(tile, "approximate")
        cheap = _points(tile, "ternary")
        exact = stl.Spec(*EXACT[BEST_EXACT[tile]], BEST_EXACT[tile])
        for rank in sorted({*real, *cheap, exact.rank}):
            row: dict[str, Any] = {"case": f"tile {tile} rank {rank}", "baseline": "real bases"}
            for name, points in (("real", real), ("ternary", cheap)):
                if rank in points:
                    row[f"{name} residual"], row[f"{name} operations"] = points[rank]
            if rank in real and rank in cheap:
                row["ratio"] = cheap[rank][1] / real[rank][1]
            if rank == exact.rank:
                row |= {"ternary residual": 0.0, "ternary operations": _operations(exact)}
            rows.append(row)
    return [*rows, *_by_width()]


def _points(tile: int, basis: str) -> dict[int, tuple[float, int]]:
    """Residual and operations by rank."""
    specs = [stl.Spec(tile, rank, basis) for rank in _ranks(tile, basis)]
    return {spec.rank: (bases(spec).residual, _operations(spec)) for spec in specs}


def _ranks(tile: int, basis: str) -> tuple[int, ...]:
    known = approximation.known_ranks if basis == "approximate" else ternary_catalogue.known_ranks
    return known(tile, tile, tile)


def _operations(spec: stl.Spec) -> int:
    """Operations to encode one tile of X and decode one of Y."""
    return sum(map(sum, per_tile(bases(spec))))


def _by_width() -> Rows:
    rows: Rows = []
    for width in WIDTHS:
        shape = LayerShape(width, width, 1024)
        for budget in BUDGETS:
            most = budget * dense.cost(dense.Spec(), shape).flops
            row: dict[str, Any] = {"case": f"{width} -> {width}, budget {budget:g}"}
            for basis, label in LABELS.items():
                specs = [stl.Spec(4, rank, basis) for rank in _ranks(4, basis)]
                fitting = [spec for spec in specs if stl.cost(spec, shape).flops <= most]
                if fitting:
                    least = min(fitting, key=lambda spec: bases(spec).residual)
                    row |= {f"{label} rank": least.rank, f"{label} residual": bases(least).residual}
            rows.append(row)
    return rows
