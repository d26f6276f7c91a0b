"""discover(): the scheme of lowest rank that a flip-graph search finds in a given time.

The search for a large format starts from an extended scheme of a smaller one: (n, m, p - 1) to (n, m, p).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from basis_search.schemes.algebra.scheme import BilinearScheme, check_format
from basis_search.schemes.algebra.transforms import extend, to_format
from basis_search.schemes.constructions.derived import standard
from basis_search.schemes.flips.format_graph import ordered
from basis_search.schemes.flips.progress import Progress, check_budget
from basis_search.schemes.flips.search import Search
from basis_search.schemes.flips.walk import WalkRing, check_limits, walkable

LARGEST_DIRECT_SIDE = 4  # up to this side walks from the standard algorithm reach low ranks


def needs_extension(n: int, m: int, p: int) -> bool:
    """Whether walks from the standard algorithm stay far above the ranks that extensions reach."""
    return max(n, m, p) > LARGEST_DIRECT_SIDE


def extended_from_smaller(
    n: int, m: int, p: int, ring: WalkRing, seconds: float = 20.0, seed: int = 0, workers: int = 1
) -> BilinearScheme:
    """A scheme of the format over `ring`, extended from the best scheme found with one side shorter by one.

    The formats on the way get equal shares of the time.

    Raises:
        BadInput: what `Search` raises.
    """
    chain = [ordered(n, m, p)]
    while needs_extension(*chain[-1]):
        a, b, c = chain[-1]
        chain.append(ordered(a, b, c - 1))
    scheme = walkable(standard(*chain[-1]), ring)
    for smaller, larger in zip(chain[:0:-1], chain[-2::-1], strict=True):
        search = Search(*smaller, ring, seed=seed, workers=workers, starts=[to_format(scheme, *smaller)])
        a, b, c = larger
        scheme = extend(to_format(search.run(seconds=seconds / (len(chain) - 1)), a, b, c - 1), "p")
    return to_format(scheme, n, m, p)


def discover(
    n: int,
    m: int,
    p: int,
    ring: str = "Z2",
    rank: int | None = None,
    seconds: float = 60.0,
    seed: int = 0,
    workers: int = 1,
    *,
    starts: Sequence[BilinearScheme] = (),
    symmetry: str = "auto",
    directory: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> BilinearScheme:
    """The scheme of lowest rank that a flip-graph search finds in `seconds`; it stops early at `rank`.

    Ctrl-C ends the search and returns the best scheme so far. With a `directory`, each new best scheme is written
    there once it is found and verified, and `resume` continues from the state stored there.

    Args:
        n, m, p: the format, A [n, m] times B [m, p].
        ring: "Z2", "Z" (by lifting) or "ZT" (coefficients -1, 0, 1, walked directly).
        starts: schemes to start from; by default the standard algorithm and, if a side exceeds 4, a scheme extended
            from smaller formats in a third of the time.
        symmetry: "Z3" walks only over orbits under a.b.c -> b.c.a, "none" never does, "auto" mostly does where it
            helps: square formats from 5x5x5 on.

    Raises:
        BadInput: what `Search` raises, or a rank or time out of range.
    """
    begin = time.monotonic()
    check_format(n, m, p)
    check_limits(n, m, p, "ZT" if ring == "ZT" else "Z2")
    check_budget(rank, seconds)
    if not starts and needs_extension(n, m, p) and not resume and symmetry != "Z3":
        starts = [extended_from_smaller(n, m, p, "ZT" if ring == "ZT" else "Z2", seconds / 3, seed, workers)]
    search = Search(n, m, p, ring, seed=seed, workers=workers, starts=starts, symmetry=symmetry, directory=directory)
    if resume:
        search.resume()
    return search.run(rank, max(seconds - (time.monotonic() - begin), 1e-3), progress)
