"""Benchmarks of schemes: exact verification, interpolation points of Winograd convolution, and the list of parts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from basis_search.bench.schemes import additions, catalogue, flip_search, numerical
from basis_search.schemes import (
    BilinearScheme,
    laderman,
    strassen,
    tensor_product,
    winograd_convolution,
)
from basis_search.schemes.algebra.transforms import extend
from basis_search.schemes.constructions import rounding
from basis_search.schemes.constructions.points import search_points

Row = dict[str, Any]

# published points of F(4,3) and F(8,3) with the least fp32 errors known to us
PUBLISHED: dict[tuple[int, int], tuple[str, ...]] = {
    (4, 3): ("0", "3/2", "-3/2", "2/3", "-2/3"),
    (8, 3): ("0", "2/5", "-2/5", "5/2", "-5/2", "4/5", "-4/5", "5/4", "-5/4"),
}


def verification(device: str = "cpu", threads: int = 1) -> list[Row]:
    """Median time of 9 to prove Brent's equations, each on a newly built scheme, which has nothing cached."""
    s = strassen()
    four, eight = tensor_product(s, s), tensor_product(tensor_product(s, s), s)
    five = extend(extend(extend(four, "n"), "m"), "p")
    cases = [(four, "ZT"), (five, "ZT"), (five, "Q"), (eight, "ZT"), (eight, "Q"), (eight, "Z[i]"), (eight, "R")]
    cases += [(laderman(), "ZT")]
    rows = [_verified(scheme.to_ring, ring) for scheme, ring in cases]
    return [*rows, *(_verified(eight.reduce_mod, p) for p in (2, 65537))]


def _verified(build: Callable[[Any], BilinearScheme], ring: Any) -> Row:
    seconds = []
    for _ in range(9):
        scheme = build(ring)
        begun = time.perf_counter()
        if not scheme.verify():
            raise AssertionError(f"{scheme!r} does not verify")
        seconds.append(time.perf_counter() - begun)
    return {
        "case": f"{scheme.format} rank {scheme.rank} over {scheme.ring}",
        "milliseconds": 1e3 * statistics.median(seconds),
    }


def points(
    device: str = "cpu",
    threads: int = 1,
    sizes: tuple[tuple[int, int], ...] = ((4, 3), (6, 3), (8, 3), (4, 5), (6, 5)),
    precisions: tuple[str, ...] = rounding.PRECISIONS,
    seconds: float = 30,
) -> list[Row]:
    """Mean error of F(m x m, r x r) on tiles uniform in [-1, 1]: default points, what the search finds, the direct sum.

    `ratio` is found over default. The tiles reported on are not those of the search.
    """
    rows = []
    for m, r in sizes:
        for precision in precisions:
            found = search_points(m, r, precision, seconds=seconds)
            if not found.scheme.verify():
                raise AssertionError(f"F({m},{r}) from {found.points} is not exact")
            row: Row = {"case": f"F({m},{r}) {precision}", "baseline": "default points", "mean_error": found.error.mean}
            row |= {"ratio": found.error.mean / found.default.mean, "default": found.default.mean}
            row |= {"direct": found.error.direct, "worst_error": found.error.largest}
            if (m, r) in PUBLISHED:
                published = rounding.balanced(winograd_convolution(m, r, PUBLISHED[m, r]))
                row["published"] = rounding.measure(published, precision, 2, 8192).mean
            row |= {"points": " ".join(str(x) for x in found.points), "bases": "/".join(found.algorithm.bases)}
            rows.append(row | {"measured": found.measured, "seconds": round(found.seconds, 1)})
    return rows


def _anywhere(rows: Callable[[], list[Row]]) -> Callable[..., list[Row]]:
    """A part that depends on neither device nor threads."""
    return lambda device="cpu", threads=1: rows()


PARTS: dict[str, Callable[..., list[Row]]] = {
    "verification": verification,
    "points": points,
    "additions": _anywhere(additions.rows),
    "discovery": _anywhere(flip_search.rows),
    "numerical": _anywhere(numerical.rows),
    "lifting": _anywhere(flip_search.independent),
    "catalogue": _anywhere(catalogue.rows),
}
