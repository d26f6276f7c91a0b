"""Search for schemes of equal format and rank with fewer additions: flips at constant rank and short programs."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from basis_search.errors import BadInput
from basis_search.schemes.algebra.scheme import BilinearScheme
from basis_search.schemes.flips.ternary import towards_ternary
from basis_search.schemes.flips.walk import WalkSettings, walk
from basis_search.schemes.programs.additions import BilinearProgram, additions

POOL_SIZE = 40  # schemes that walks start from
EXTRA_NAIVE_ADDITIONS = 6  # most naive additions of a scheme above its parent's
QUICK_SECONDS = 0.2  # for the first program of a scheme
FINALISTS = 4  # schemes with a longer search for programs at the end
BASIS_CHANGE_SHARE = 0.5  # of the schemes found, which are also made sparser by changes of basis
FINAL_SHARE = 0.25  # of the time, for the finalists

Candidate = tuple[int, int, BilinearScheme]  # additions of the quick program, tie-breaker, scheme


def fewest_additions(
    schemes: BilinearScheme | list[BilinearScheme],
    seconds: float = 60.0,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> tuple[BilinearScheme, BilinearProgram]:
    """The scheme with the fewest additions found by walks from the given ones, and its program; never a worse one.

    Flips keep the rank. A short program is searched for each scheme that is not much denser than its parent. Ctrl-C
    ends the search early.

    Args:
        schemes: one or several of equal format and rank with coefficients -1, 0, 1.
        seconds: wall time.
        seed: of the walks; the result also depends on the speed of the machine.
        progress: called with the additions of each new best scheme.

    Raises:
        BadInput: schemes of several formats or ranks, coefficients beyond -1, 0, 1, or seconds that are not positive.
    """
    given = [schemes] if isinstance(schemes, BilinearScheme) else list(schemes)
    if not given or len({(s.shape, s.rank) for s in given}) != 1:
        raise BadInput("fewest_additions takes schemes of one format and one rank")
    if not 0 < seconds < float("inf"):
        raise BadInput(f"seconds = {seconds}, but must be positive and finite")
    random = np.random.default_rng(seed)
    begin = time.monotonic()
    quick = min(QUICK_SECONDS, seconds / 20)
    pool: list[Candidate] = []
    for scheme in given:
        ternary = scheme.to_ring("ZT")
        pool.append((additions(ternary, seconds=quick).additions, len(pool), ternary))
    least = min(pool)[0]
    try:
        while time.monotonic() - begin < (1 - FINAL_SHARE) * seconds:
            pool = sorted(pool)[:POOL_SIZE]
            parent = pool[min(int(random.geometric(0.12)) - 1, len(pool) - 1)][2]
            flips = WalkSettings(flips=int(10 ** random.uniform(0.3, 3.3)), plus_after=2**62, margin=0)
            walked = walk(parent, "ZT", int(random.integers(2**63)), flips).scheme
            if random.random() < BASIS_CHANGE_SHARE:
                walked = towards_ternary(walked, int(random.integers(3)), int(random.integers(2**31)))
            if walked.naive_additions > parent.naive_additions + EXTRA_NAIVE_ADDITIONS or any(
                walked == held for _, _, held in pool
            ):
                continue
            count = additions(walked, seconds=quick).additions
            pool.append((count, int(random.integers(2**62)), walked))
            if count < least:
                least = count
                if progress is not None:
                    progress(least)
    except KeyboardInterrupt:
        pass
    finalists = [scheme for _, _, scheme in sorted(pool)[:FINALISTS]]
    found = [(s, additions(s, seconds=FINAL_SHARE * seconds / len(finalists))) for s in finalists]
    return min(found, key=lambda pair: pair[1].additions)
