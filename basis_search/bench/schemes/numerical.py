"""Share of exact schemes found by least squares and rounding, and their seconds."""

from __future__ import annotations

import statistics
import time
from typing import Any

from basis_search.schemes.numerical.discover import StartResult, discover_numerically

Row = dict[str, Any]

CASES = (
    ((2, 2, 2), 7, "ZT"),
    ((2, 2, 3), 11, "Z[1/2]"),
    ((2, 3, 3), 15, "Z[1/2]"),
    ((2, 3, 3), 15, "Q"),
    ((3, 3, 3), 23, "Z[1/2]"),
    ((3, 3, 3), 23, "Q"),
)


def rows(seeds: int = 5, seconds: float = 60.0) -> list[Row]:
    """Per format, rank and ring: seeds that ended in an exact scheme, starts and seconds they took, the ring found."""
    found = []
    for shape, rank, ring in CASES:
        exact, times, starts, rings = 0, [], 0, set()
        for seed in range(seeds):
            tried: list[StartResult] = []
            begun = time.perf_counter()
            scheme = discover_numerically(*shape, rank, ring, seconds, seed, tried.append)
            times.append(time.perf_counter() - begun)
            starts += len(tried)
            if scheme is not None:
                if not scheme.verify():
                    raise AssertionError(f"{scheme!r} does not verify")
                exact += 1
                rings.add(scheme.ring)
        found.append(
            {
                "case": f"{'x'.join(map(str, shape))}:{rank} rounded to {ring}",
                "seeds": seeds,
                "exact": exact,
                "median seconds": statistics.median(times),
                "worst seconds": max(times),
                "starts": starts,
                "rings": ", ".join(sorted(rings)),
            }
        )
    return found
