"""Flip-graph search for schemes of low rank: walks in threads from a pool of the best schemes so far.

The start of job k depends only on the seed, on k and on the results of the jobs before k - 2 workers, so a search is
reproducible for a given number of workers, however its threads are scheduled.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as OutOfTime
from pathlib import Path
from typing import Any

import numpy as np

from basis_search.errors import BadInput
from basis_search.schemes.algebra.scheme import BilinearScheme, check_format
from basis_search.schemes.constructions.derived import standard
from basis_search.schemes.flips.lifting import lift
from basis_search.schemes.flips.pool import Pool
from basis_search.schemes.flips.progress import Progress, check_budget
from basis_search.schemes.flips.search_folder import SearchFolder
from basis_search.schemes.flips.symmetric import (
    LOG10_ORBIT_FLIPS,
    OrbitPool,
    OrbitWalkResult,
    symmetric_share,
    walk_orbits,
)
from basis_search.schemes.flips.ternary import towards_ternary
from basis_search.schemes.flips.walk import (
    WalkResult,
    WalkRing,
    WalkSettings,
    compiled,
    factors,
    walk,
)

RINGS = ("Z2", "Z", "ZT")
FRESH_SHARE = 0.2  # of the walks, which begin from a start instead of the pool
MAX_STARTS = 32
STARTS_ABOVE = 12  # ranks of starts above the lowest start
LOG10_FLIPS = (6.5, 7.5)  # of a walk
TERNARY_ROUNDS = 20


class Search:
    """A search that can be interrupted, stored and resumed.

    Args:
        n, m, p: the format.
        ring: "Z2"; "ZT", walking over -1, 0, 1 directly; "Z", walking over Z2 and lifting the schemes found.
        seed: of all random choices.
        workers: number of threads.
        starts: schemes to walk from besides the standard algorithm, of this format and a ring that fits.
        settings: of the walks; by default drawn for each walk.
        symmetry: "Z3" walks only over orbits under a.b.c -> b.c.a (square formats, not over ZT), "none" never does,
            "auto" mostly does where it helps, from 5x5x5 on.
        directory: each new best scheme is written there when it is found, and the state every half minute.
        kernel: name of the walk kernel; by default the fastest.

    Raises:
        BadInput: an unknown ring or symmetry, a format beyond the limits, starts of another format or ring, a symmetry
            that does not apply to the format or ring, no compiled kernels.
    """

    def __init__(
        self,
        n: int,
        m: int,
        p: int,
        ring: str = "Z2",
        *,
        seed: int = 0,
        workers: int = 1,
        starts: Sequence[BilinearScheme] = (),
        settings: WalkSettings | None = None,
        symmetry: str = "auto",
        directory: str | Path | None = None,
        kernel: str | None = None,
    ) -> None:
        check_format(n, m, p)
        if ring not in RINGS:
            raise BadInput(f"ring {ring!r} cannot be searched; choose one of {', '.join(RINGS)}")
        if isinstance(workers, bool) or not isinstance(workers, int) or not 1 <= workers <= 1024:
            raise BadInput(f"workers = {workers!r}, but must be an integer from 1 to 1024")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise BadInput(f"seed = {seed!r}, but must be an integer of at least 0")
        self.n, self.m, self.p, self.ring = n, m, p, ring
        self.walk_ring: WalkRing = "ZT" if ring == "ZT" else "Z2"
        self.seed, self.workers, self.settings, self.kernel = seed, workers, settings, kernel
        self.folder = None if directory is None else SearchFolder(Path(directory), f"search-{n}x{m}x{p}-{ring}.npz")
        self.jobs = 0
        self.flips = 0
        self.cpu_seconds = 0.0
        self.interrupted = False  # whether Ctrl-C ended the last run
        self.seconds = 0.0  # wall time of all runs
        self.symmetric = symmetric_share(symmetry, (n, m, p), ring)
        self.orbits = OrbitPool(n)
        self._target: int | None = None  # the rank of the current run
        self.pool = Pool()
        self.best: BilinearScheme | None = None  # in `ring`
        self.starts: list[BilinearScheme] = []
        self._began = time.monotonic()
        for start in (standard(n, m, p), *starts):
            self.offer(start)

    def offer(self, start: BilinearScheme, origin: str | None = None) -> None:
        """Adds a scheme to walk from. If it is the best so far it is the search's result, written if `origin` is given.

        Raises:
            BadInput: another format, a ring that does not fit, or a scheme that does not verify.
        """
        if start.shape != (self.n, self.m, self.p):
            raise BadInput(f"a start of format {start.format} does not fit a search for {self.n}x{self.m}x{self.p}")
        U, V, W = factors(start, self.walk_ring)
        walked = BilinearScheme(self.n, self.m, self.p, U, V, W, self.walk_ring)
        if not start.verify() or not walked.verify():
            raise BadInput(f"a start fails verification: {start.first_violation() or walked.first_violation()}")
        least = min((s.rank for s in self.starts), default=walked.rank)
        if walked.rank <= least + STARTS_ABOVE:
            near = [s for s in self.starts if s.rank <= walked.rank + STARTS_ABOVE]
            self.starts = [*near[-MAX_STARTS:], walked]
        improves = self.best is None or walked.rank < self.best.rank
        if improves:
            held = start if start.ring == self.ring else None
            if held is None and start.ring == "ZT":
                held = start.to_ring(self.ring) if self.ring != "Z2" else walked
            found = held or self._lifted(walked if self.ring != "Z2" else start.reduce_mod(2), 0)
            if found is None:
                return
            self.best = found
            if origin is not None:
                self._write(found, origin)
        if improves or self.best is None or walked.rank >= self.best.rank:
            self.pool.add(walked, np.random.default_rng([self.seed, 1 << 32, len(self.starts)]))

    @property
    def lowest(self) -> list[BilinearScheme]:
        """The schemes of the lowest rank in the pool, over the ring of the walk."""
        return [] if self.pool.best is None else self.pool.schemes[self.pool.best]

    # ---- running --------------------------------------------------------------------------------------------
    def run(
        self, rank: int | None = None, seconds: float = 60.0, progress: Callable[[Progress], None] | None = None
    ) -> BilinearScheme:
        """Searches until the best rank is at most `rank`, the time is over, or Ctrl-C; returns the best scheme.

        Another call continues the search.

        Raises:
            BadInput: a rank below 1, or seconds that are not positive.
        """
        check_budget(rank, seconds)
        self.interrupted, self._target = False, rank
        begin = time.monotonic()
        self._began = begin - self.seconds
        monitor = compiled().Monitor()
        pending: deque[tuple[int, Future[WalkResult]]] = deque()
        reached = self._reached(rank)
        with ThreadPoolExecutor(self.workers, thread_name_prefix="walk") as threads:
            try:
                while not reached:
                    while len(pending) < 2 * self.workers:
                        pending.append((self.jobs, threads.submit(self._job(self.jobs, monitor))))
                        self.jobs += 1
                    left = seconds - (time.monotonic() - begin)
                    job, future = pending[0]
                    walked = future.result(timeout=max(left, 0.0))
                    pending.popleft()
                    self._merge(job, walked, begin, progress)
                    reached = self._reached(rank)
                    self._write_state(always=False)
            except OutOfTime:
                pass
            except KeyboardInterrupt:
                self.interrupted = True
            finally:
                monitor.stop = True
        for job, future in pending:
            walked = future.result()
            self.flips += walked.flips
            if not reached:
                self._merge(job, walked, begin, progress)
        self.seconds = time.monotonic() - self._began
        self._write_state(always=True)
        assert self.best is not None
        return self.best

    def _reached(self, rank: int | None) -> bool:
        return rank is not None and self.best is not None and self.best.rank <= rank

    def _job(self, job: int, monitor: object) -> Callable[[], WalkResult]:
        random = np.random.default_rng([self.seed, job])
        if self.symmetric and random.random() < self.symmetric:
            return self._symmetric_job(random, monitor)
        fresh = random.random() < FRESH_SHARE and job >= 2 * self.workers
        start = self.starts[int(random.integers(len(self.starts)))] if fresh else self.pool.draw(random)
        settings = self._draw_settings(random, LOG10_FLIPS, (3.3, 5.3))
        walk_seed = int(random.integers(2**63))
        held = self.pool.best
        assert held is not None
        return lambda: walk(start, self.walk_ring, walk_seed, settings, held - 1, monitor, self.kernel)

    def _symmetric_job(self, random: np.random.Generator, monitor: object) -> Callable[[], WalkResult]:
        orbits = self.orbits.draw(random, self._target)
        settings = self._draw_settings(random, LOG10_ORBIT_FLIPS, (4.3, 5.3))
        walk_seed = int(random.integers(2**63))
        held = self.pool.best
        assert held is not None
        return lambda: walk_orbits(orbits, walk_seed, settings, held - 1, monitor, self.kernel)

    def _draw_settings(
        self, random: np.random.Generator, log10_flips: tuple[float, float], log10_plus_after: tuple[float, float]
    ) -> WalkSettings:
        return self.settings or WalkSettings(
            flips=int(10 ** random.uniform(*log10_flips)),
            plus_after=int(10 ** random.uniform(*log10_plus_after)),
            margin=int(random.integers(2, 4)),
        )

    def _merge(self, job: int, walked: WalkResult, begin: float, progress: Callable[[Progress], None] | None) -> None:
        self.flips += walked.flips
        self.cpu_seconds += walked.seconds
        scheme, found = walked.scheme, None
        method = "flip graph"
        if isinstance(walked, OrbitWalkResult):
            self.orbits.add(walked.orbits)
            method += ", Z3-symmetric"
        if self.best is None or scheme.rank < self.best.rank:
            if not scheme.verify():
                raise AssertionError(f"the walk broke a scheme, which is a bug: {scheme.first_violation()}")
            found = self._lifted(scheme, job)
            if found is None:
                return  # schemes that do not lift mostly lead to others that do not
            self.best = found
            self._write(found, method + (", lifted" if self.ring == "Z" else ""), job)
        elif self.ring == "Z" and scheme.rank == self.best.rank and self._liftable(scheme, job) is None:
            return
        self.pool.add(scheme, np.random.default_rng([self.seed, job, 1]))
        if progress is not None and self.best is not None:
            seconds = time.monotonic() - begin
            rate = self.flips / self.cpu_seconds if self.cpu_seconds else 0.0
            progress(Progress(self.best.rank, seconds, self.cpu_seconds, self.flips, rate, found))

    def _lifted(self, scheme: BilinearScheme, job: int) -> BilinearScheme | None:
        if self.ring != "Z":
            return scheme
        found = lift(scheme, seed=job)
        return None if found is None or found.ring == "Q" else towards_ternary(found, TERNARY_ROUNDS, job)

    def _liftable(self, scheme: BilinearScheme, job: int) -> BilinearScheme | None:
        """A lift to Z or Q; walks from schemes that lift lead to others that do."""
        return lift(scheme, seed=job, attempts=1)

    # ---- files ----------------------------------------------------------------------------------------------
    def _write(self, scheme: BilinearScheme, method: str, job: int | None = None) -> None:
        if self.folder is None:
            return
        provenance = {"method": method, "seed": self.seed, "workers": self.workers, "job": job, "flips": self.flips}
        provenance["cpu seconds"] = round(self.cpu_seconds, 2)
        provenance["clock seconds"] = round(time.monotonic() - self._began, 2)
        self.folder.add(scheme, provenance)

    @property
    def state_path(self) -> Path | None:
        """The file of the state, or None without a directory."""
        return None if self.folder is None else self.folder.state_path

    @property
    def _identity(self) -> dict[str, Any]:
        return {"format": [self.n, self.m, self.p], "ring": self.ring, "seed": self.seed}

    def _write_state(self, always: bool) -> None:
        if self.folder is None:
            return
        facts = {"jobs": self.jobs, "flips": self.flips, "cpu_seconds": self.cpu_seconds, "seconds": self.seconds}
        self.folder.write_state(self.pool, self.orbits, self._identity | facts, always)

    def resume(self) -> None:
        """Continues from the state stored in the directory.

        Raises:
            BadInput: there is none, it is damaged, or it belongs to another format, ring or seed.
        """
        if self.folder is None:
            raise BadInput("a search resumes from its directory; name one")
        self.pool, facts, orbits = self.folder.read_state(self.walk_ring, self._identity)
        self.jobs, self.flips, self.cpu_seconds = facts["jobs"], facts["flips"], facts["cpu_seconds"]
        self.seconds = float(facts.get("seconds", 0.0))
        self.orbits = orbits or self.orbits
        for scheme in self.lowest:
            found = self._lifted(scheme, self.jobs)
            if found is not None and (self.best is None or found.rank < self.best.rank):
                self.best = found
