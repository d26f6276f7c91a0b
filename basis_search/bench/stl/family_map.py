"""Least error per family on square layers, at equal FLOPs and at equal measured time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from basis_search.bench.stl.map_layer import Square
from basis_search.bench.stl.map_times import (
    KINDS,
    candidates,
    label,
    shares,
)
from basis_search.families import dense, int8, lowrank, stl
from basis_search.families.stl.bases import bases
from basis_search.layers.layer import LayerShape
from basis_search.schemes.numerical import approximation, ternary_catalogue

Rows = list[dict[str, Any]]
Found = tuple[float, str]
"""An error and the label of its structure."""

SIZES = (128, 256, 512, 1024, 2048)
FITTED, MIXED, SWEPT = 1024, 512, 256
"""Largest sizes for fitted STL, for STL plus low rank, and for fitted bases: larger ones take too long."""
DECAYS = (0.0, 0.5, 1.0)
BUDGETS = (0.75, 0.6, 0.5, 0.4)
TIMES = (0.75, 0.5, 0.33, 0.25)
WAISTS = (1 / 32, 1 / 16, 1 / 8, 1 / 5)
"""Ranks of the hybrid's low-rank part, as shares of the width; each part alone is tried too."""
SWEEPS = 4


def winners(device: str, threads: int) -> Rows:
    """One row per size, decay and FLOP budget: each family's error and the winner."""
    return [row for size in SIZES for decay in DECAYS for row in _by_operations(size, decay)]


def winners_by_time(device: str, threads: int) -> Rows:
    """One row per size, decay and share of the dense layer's measured time, n = k = m.

    2:4 pruning is left out: torch has no CPU kernel that gains time by it.
    """
    taken = {size: shares(size, threads) for size in SIZES}
    return [row for size in SIZES for decay in DECAYS for row in _by_time(size, decay, taken[size])]


def _by_operations(size: int, decay: float) -> Rows:
    square, rows = Square.of(size, decay), []
    for budget in BUDGETS:
        hybrids = [spec for share in WAISTS for spec in _specs(size, budget, int(share * size))[:1]]
        found = _tiles(square, _specs(size, budget), hybrids, _low_rank(square, _highest_rank(size, budget)))
        found["2:4 pruning"] = (square.pruned(), "2:4") if budget >= 0.5 else None
        case = f"{size} -> {size}, decay {decay:g}, budget {budget:g}"
        rows.append({"case": case, "size": size, "decay": decay, "budget": budget, **_ranked(found)})
    return rows


def _by_time(size: int, decay: float, taken: Mapping[str, float]) -> Rows:
    square, rows = Square.of(size, decay), []
    for budget in TIMES:
        within = [spec for spec in candidates(size) if taken[label(spec)] <= budget]
        tiles = _most(spec for spec in within if isinstance(spec, stl.Spec))
        ranks = [spec.rank for spec in within if isinstance(spec, lowrank.Spec)]
        found = _tiles(
            square,
            sorted((spec for spec in tiles if not spec.waist), key=lambda spec: bases(spec).residual),
            [spec for spec in tiles if spec.waist],
            _low_rank(square, max(ranks, default=0)),
        )
        found["int8"] = (square.int8(), label(int8.Spec())) if int8.Spec() in within else None
        ranked = _ranked(found)
        case = f"{size} -> {size}, decay {decay:g}, time {budget:g}"
        row = {"case": case, "size": size, "decay": decay, "time": budget, **ranked}
        rows.append({**row, "ratio": taken.get(ranked["by"])})
    return rows


def _most(specs: Iterable[stl.Spec]) -> list[stl.Spec]:
    """Per basis and low-rank width, the spec with the most products."""
    most: dict[tuple[str, int], stl.Spec] = {}
    for spec in sorted(specs, key=lambda spec: spec.rank):
        most[spec.basis, spec.waist] = spec
    return list(most.values())


def _ranked(found: Mapping[str, Found | None]) -> dict[str, Any]:
    """Errors and winner; ties go to the first, so that a hybrid wins only where it beats both of its parts."""
    known = {name: pair for name, pair in found.items() if pair is not None}
    errors = {name: None if pair is None else pair[0] for name, pair in found.items()}
    if not known:
        return {**errors, "winner": "none", "by": ""}
    least = min(error for error, _ in known.values())
    winner = next(name for name, (error, _) in known.items() if error <= least * (1 + 1e-9))
    return {**errors, "winner": winner, "by": known[winner][1]}


def _tiles(
    square: Square, specs: list[stl.Spec], hybrids: list[stl.Spec], low_rank: Found | None
) -> dict[str, Found | None]:
    """Least error of each use of the given tiles (sorted by residual), of low rank, and of both together."""
    size = len(square.weight)
    found: dict[str, Found | None] = {"STL, fixed bases": _least(square.unfitted, specs[:1]), "low rank": low_rank}
    if size <= FITTED:
        found["STL, fitted"] = _least(lambda spec: square.tiles(spec, 0), specs)
    if size <= MIXED:
        both = [_least(square.hybrid, hybrids), found["STL, fitted"], low_rank]
        found["low rank + STL"] = min((pair for pair in both if pair), key=lambda pair: pair[0], default=None)
    if size <= SWEPT:
        found["STL, bases fitted too"] = _least(lambda spec: square.tiles(spec, SWEEPS), specs)
    return found


def _least(error: Callable[[stl.Spec], float], specs: list[stl.Spec]) -> Found | None:
    return min(((error(spec), label(spec)) for spec in specs), key=lambda pair: pair[0], default=None)


def _low_rank(square: Square, rank: int) -> Found | None:
    return (square.low_rank(rank), label(lowrank.Spec(rank))) if rank else None


def _shape(size: int) -> LayerShape:
    return LayerShape(size, size, size)


def _fits(spec: stl.Spec, size: int, budget: float) -> bool:
    return stl.cost(spec, _shape(size)).flops <= budget * dense.cost(dense.Spec(), _shape(size)).flops


def _specs(size: int, budget: float, waist: int = 0) -> list[stl.Spec]:
    """Per basis of tile 4 the spec with the most products within the budget, sorted by residual."""
    if not waist and _fits(exact := stl.Spec(4, 49, "winograd2"), size, budget):
        return [exact]
    found = []
    for kind in KINDS:
        ranks = (approximation if kind == "approximate" else ternary_catalogue).known_ranks(4, 4, 4)
        fitting = [s for r in ranks if r < 49 and _fits(s := stl.Spec(4, r, kind, waist=waist), size, budget)]
        found += fitting[-1:]
    return sorted(found, key=lambda spec: bases(spec).residual)


def _highest_rank(size: int, budget: float) -> int:
    """The largest rank within the budget."""
    most = budget * dense.cost(dense.Spec(), _shape(size)).flops
    return max(rank for rank in range(1, size // 2) if lowrank.cost(lowrank.Spec(rank), _shape(size)).flops <= most)
