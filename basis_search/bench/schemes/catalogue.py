"""Ranks and additions of the catalogue's schemes, and the share of GF(2) schemes of each format that lift."""

from __future__ import annotations

import time
from typing import Any

from basis_search.bench.schemes.additions import program_row
from basis_search.schemes import BilinearScheme, catalogue, lift, towards_ternary
from basis_search.schemes.flips.format_graph import BEST_KNOWN, Format, all_formats
from basis_search.schemes.flips.walk import WalkSettings, walk
from basis_search.schemes.programs.additions import additions

Row = dict[str, Any]
RINGS = ("Z2", "Z")


def ranks() -> list[Row]:
    """Best rank of each format in the catalogue next to the best known; sums in the last row."""
    held = catalogue()
    rows: list[Row] = []
    sums = dict.fromkeys(("Z2", "Z", "Z2 known", "Z known"), 0)
    for shape in all_formats():
        row: Row = {"case": _name(shape)}
        for ring in RINGS:
            scheme = held.best(*shape, ring=ring)
            known = BEST_KNOWN[ring][shape]
            row |= {f"rank over {ring}": None if scheme is None else scheme.rank, f"best known over {ring}": known}
            sums[ring] += 0 if scheme is None else scheme.rank
            sums[f"{ring} known"] += known
        rows.append(row)
    total: Row = {"case": "sum"}
    for ring in RINGS:
        total |= {f"rank over {ring}": sums[ring], f"best known over {ring}": sums[f"{ring} known"]}
    return [*rows, total]


def lifting(walks: int = 8) -> list[Row]:
    """Per format: GF(2) schemes of the catalogue's best rank, spread by walks, and how many lift, and to which ring.

    Distinct schemes alone are counted. All are reached from one scheme, which over Z is one that lifts: their share
    does not carry over to independently found schemes, which `part=lifting` measures.
    Where GF(2) allows a lower rank than is known over Z, that rank has another row; its schemes cannot lift.
    """
    held = catalogue()
    rows: list[Row] = []
    for shape in all_formats():
        starts = {s.rank: s for ring in ("Z", "Z2") if (s := held.best(*shape, ring=ring)) is not None}
        for rank, start in sorted(starts.items(), reverse=True):
            binary = start if start.ring == "Z2" else start.reduce_mod(2)
            met = [walk(binary, "Z2", seed, WalkSettings(2_000_000, 50_000, 2)).scheme for seed in range(walks)]
            met = list(dict.fromkeys(s for s in met if s.rank == rank)) or [binary]
            begun = time.perf_counter()
            rings: dict[str, int] = {}
            for scheme in met:
                lifted = lift(scheme)
                if lifted is not None and lifted.ring == "Z":
                    lifted = towards_ternary(lifted, rounds=10)
                name = "none" if lifted is None else lifted.ring
                rings[name] = rings.get(name, 0) + 1
            rows.append(
                {
                    "case": f"{_name(shape)}:{rank}",
                    "schemes": len(met),
                    "share": 1 - rings.get("none", 0) / len(met),
                    "rings": ", ".join(f"{count} {ring}" for ring, count in sorted(rings.items())),
                    "seconds a scheme": (time.perf_counter() - begun) / len(met),
                    "below the best known over Z": rank < BEST_KNOWN["Z"][shape],
                }
            )
    return rows


def programs(seconds: float = 5.0) -> list[Row]:
    """Additions of the catalogue's best integer scheme of each format, in `seconds` each, verified exactly."""
    held = catalogue()
    rows = []
    for shape in all_formats():
        best: tuple[int, Row] | None = None
        for scheme in _candidates(held, shape):
            begun = time.perf_counter()
            program = additions(scheme, seconds=seconds)
            row = program_row(f"{_name(shape)}:{scheme.rank}", scheme, program, time.perf_counter() - begun)
            if best is None or program.additions < best[0]:
                best = program.additions, row
        if best is not None:
            rows.append(best[1])
    return rows


def _candidates(held: Any, shape: Format) -> list[BilinearScheme]:
    """Every integer scheme of the least rank."""
    named = [(held[name], name) for name in held if name.endswith(("_Z", "_ZT")) or "_ZT_" in name]
    found = [s for s, _ in named if sorted(s.shape) == sorted(shape)]
    least = min((s.rank for s in found), default=0)
    return [s for s in found if s.rank == least]


def _name(shape: Format) -> str:
    return "x".join(map(str, shape))


def rows() -> list[Row]:
    """Rows of every table in this module."""
    return [*ranks(), *lifting(), *programs()]
