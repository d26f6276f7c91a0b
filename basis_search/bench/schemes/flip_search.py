"""Flip-graph search: flips per CPU second, CPU seconds to known ranks, share of schemes that lift."""

from __future__ import annotations

import statistics
import time
from typing import Any

from basis_search.schemes.constructions.derived import standard
from basis_search.schemes.flips.format_graph import BEST_KNOWN, all_formats
from basis_search.schemes.flips.lifting import lift
from basis_search.schemes.flips.search import Search
from basis_search.schemes.flips.symmetric import is_symmetric, start, walk_orbits
from basis_search.schemes.flips.walk import WalkSettings, kernels, walk

Row = dict[str, Any]

WALK_RANKS = (
    ((3, 3, 3), 23),
    ((4, 4, 4), 52),
    ((5, 5, 5), 125),
)
"""Format, and the rank at which walks spend most of their time."""


def throughput(flips: int = 20_000_000) -> list[Row]:
    """Million flips per CPU second and core, per format and walk kernel, from a scheme of the rank in WALK_RANKS."""
    rows = []
    for shape, rank in WALK_RANKS:
        search = Search(*shape, seed=1)
        scheme = search.run(rank, seconds=30)
        for ring in ("Z2", "ZT"):
            begin = scheme if ring == "Z2" else standard(*shape)
            for kernel in kernels():
                done = walk(begin, ring, 1, WalkSettings(flips, 100_000, 2), kernel=kernel)
                rows.append(
                    {
                        "case": f"{'x'.join(map(str, shape))} {ring} {kernel}",
                        "rank": begin.rank,
                        "flips": done.flips,
                        "million flips per CPU second": done.flips / done.seconds / 1e6,
                    }
                )
    return rows


def seconds_to(shape: tuple[int, int, int], rank: int, seeds: int, limit: float = 60.0) -> list[Row]:
    """CPU seconds of walks from the standard algorithm to `rank` over GF(2): mean, median and worst over seeds."""
    times, reached = [], 0
    for seed in range(seeds):
        search = Search(*shape, seed=seed)
        reached += search.run(rank, seconds=limit).rank <= rank
        times.append(search.cpu_seconds)
    return [
        {
            "case": f"{'x'.join(map(str, shape))}:{rank} over GF(2)",
            "seeds": seeds,
            "reached": reached,
            "mean CPU s": statistics.mean(times),
            "median CPU s": statistics.median(times),
            "worst CPU s": max(times),
        }
    ]


def lifting(shape: tuple[int, int, int] = (3, 3, 3), rank: int = 23, seeds: int = 60, seconds: float = 30) -> list[Row]:
    """Share of the schemes found over GF(2) that lift to Z or Q; every walk starts at the standard algorithm."""
    rings: dict[str, int] = {}
    found = 0
    for seed in range(seeds):
        scheme = Search(*shape, seed=seed).run(rank, seconds=seconds)
        if scheme.rank > rank:
            continue
        found += 1
        lifted = lift(scheme)
        name = "none" if lifted is None else lifted.ring
        rings[name] = rings.get(name, 0) + 1
    share = (found - rings.get("none", 0)) / found if found else 0.0
    return [{"case": f"{'x'.join(map(str, shape))}:{rank} lifted", "schemes": found, "share": share, "rings": rings}]


def independent(seeds: int = 16, seconds: float = 30, volume: int = 50) -> list[Row]:
    """`lifting` at the best rank known over Z for every format of at most `volume` products.

    0 of 0 schemes means that no seed reached the rank within its seconds.
    """
    shapes = sorted(all_formats(), key=lambda f: (f[0] * f[1] * f[2], f))
    small = [f for f in shapes if f[0] * f[1] * f[2] <= volume]
    return [row for f in small for row in lifting(f, BEST_KNOWN["Z"][f], seeds, seconds)]


def symmetric() -> list[Row]:
    """The walk over orbits from 3 cubes that reaches 5x5x5 of rank 93 (one of six tried), and its lift."""
    begin = start(5, [[1, 2], [0, 4], [3]])
    walked = walk_orbits(begin, 105, WalkSettings(200_000_000, 200_000, 2))
    if not walked.scheme.verify() or not is_symmetric(walked.scheme):
        raise AssertionError(f"{walked.scheme!r} is not exact and symmetric")
    begun = time.process_time()
    lifted = lift(walked.scheme)
    return [
        {
            "case": f"5x5x5 from rank {begin.rank} by one walk over orbits",
            "rank": walked.scheme.rank,
            "CPU s": walked.seconds,
            "million flips per CPU second": walked.flips / walked.seconds / 1e6,
            "lifted to": "none" if lifted is None else lifted.ring,
            "CPU s of lifting": time.process_time() - begun,
        }
    ]


def rows(seeds: int = 200) -> list[Row]:
    """Rows of every table in this module."""
    return [
        *throughput(),
        *seconds_to((3, 3, 3), 23, seeds),
        *seconds_to((4, 4, 4), 49, min(10, seeds)),
        *symmetric(),
        *lifting(seeds=min(60, seeds)),
        *lifting((4, 4, 4), 49, seeds=min(5, seeds)),
    ]
