"""Search for many formats within one budget: each format's search also starts from the schemes of the others.

Merges, projections and tensor products turn schemes of one format into starts for another (format_graph.py). The
formats that have not reached their target rank take turns, and a format's turn grows when it finds nothing.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from basis_search.errors import BadInput
from basis_search.files import append_line
from basis_search.schemes.algebra.scheme import BilinearScheme
from basis_search.schemes.flips.format_graph import (
    BEST_KNOWN,
    Format,
    all_formats,
    ordered,
    starts_for,
)
from basis_search.schemes.flips.progress import Progress
from basis_search.schemes.flips.search import RINGS, Search
from basis_search.schemes.flips.walk import walkable
from basis_search.schemes.library.loader import Catalogue

FIRST_TURN = 1.0  # seconds
FIRST_SYMMETRIC_TURN = 30.0  # walks over orbits are long
TURN_GROWTH = 1.5  # of a format's turn after a turn without improvement
LONGEST_TURN = 120.0
LOG = "table.jsonl"  # in the directory: one line per improvement


@dataclass(frozen=True)
class FormatProgress:
    """The state of one format's search: its best rank, wall and CPU seconds and flips.

    `clock` is the wall time of the whole table so far, `total` the sum of the best ranks at that time.
    """

    format: Format
    rank: int
    seconds: float
    cpu_seconds: float
    flips: int
    clock: float = 0.0
    total: int = 0


class Table:
    """Searches for many formats over one ring, each started from schemes of the others.

    Args:
        formats: with sides in any order; "all" for the 20 with sides from 2 to 5.
        ring, seed, workers: as in `Search`.
        directory: a catalogue folder. The table starts from its schemes (so it resumes), writes the schemes found there
            and adds a line to `table.jsonl` for each improvement.
        aims: the rank at which the search for a format stops, by default the best known; a format without one is
            searched until the time is over.

    Raises:
        BadInput: no formats, or what `Search` raises.
    """

    def __init__(
        self,
        formats: Sequence[Format] | str = "all",
        ring: str = "Z2",
        *,
        seed: int = 0,
        workers: int = 1,
        directory: str | Path | None = None,
        aims: dict[Format, int] | None = None,
    ) -> None:
        if isinstance(formats, str):
            if formats != "all":
                raise BadInput(f"formats = {formats!r}; give 'all' or a list of formats such as (4, 4, 5)")
            formats = all_formats()
        if ring not in RINGS:
            raise BadInput(f"ring {ring!r} cannot be searched; choose one of {', '.join(RINGS)}")
        if not formats:
            raise BadInput("a table needs at least one format")
        self.formats = sorted({ordered(*f) for f in formats}, key=lambda f: (f[0] * f[1] * f[2], f))
        self.ring, self.seed = ring, seed
        self.aims = BEST_KNOWN.get(ring, {}) if aims is None else aims
        self.random = np.random.default_rng([seed, 7])
        self.searches: dict[Format, Search] = {}
        self.turns = dict.fromkeys(self.formats, FIRST_TURN)
        self.spent = dict.fromkeys(self.formats, 0.0)
        self.directory = None if directory is None else Path(directory)
        self._logged_ranks: dict[Format, int] = {}
        held = None if directory is None else Catalogue(directory)
        for f in self.formats:
            stored = held.best(*f, ring=ring) if held is not None else None
            starts = [] if stored is None else [walkable(stored, "ZT" if ring == "ZT" else "Z2")]
            self.searches[f] = Search(*f, ring, seed=seed, workers=workers, starts=starts, directory=directory)
            if self.searches[f].symmetric:
                self.turns[f] = FIRST_SYMMETRIC_TURN
            if stored is not None:
                self.searches[f].offer(stored)

    @property
    def rows(self) -> list[FormatProgress]:
        """The state of each format's search."""
        return [
            FormatProgress(f, s.best.rank, self.spent[f], s.cpu_seconds, s.flips)
            for f, s in self.searches.items()
            if s.best is not None
        ]

    @property
    def total(self) -> int:
        """The sum of the best ranks."""
        return sum(row.rank for row in self.rows)

    def run(
        self, seconds: float, progress: Callable[[FormatProgress], None] | None = None
    ) -> dict[Format, BilinearScheme]:
        """Searches until every format reaches its aim, the time is over, or Ctrl-C; returns each format's best scheme.

        Raises:
            BadInput: seconds that are not positive.
        """
        if not 0 < seconds < float("inf"):
            raise BadInput(f"seconds = {seconds}, but must be positive and finite")
        self._begin = time.monotonic()
        end = self._begin + seconds
        interrupted = False
        while not interrupted and (f := self._next()) is not None and time.monotonic() < end:
            search = self.searches[f]
            for start in starts_for(f, self._known(f), self.random):
                search.offer(start, origin="merge, projection or product of other formats' schemes")
            before = search.best.rank if search.best is not None else None
            self._log_improvement(f)
            begin = time.monotonic()
            turn = max(min(self.turns[f], end - begin), 0.01)
            search.run(self.aims.get(f), turn, partial(self._on_progress, f))
            interrupted = search.interrupted
            self.spent[f] += time.monotonic() - begin
            paid = search.best is not None and search.best.rank != before
            self.turns[f] = self.turns[f] if paid else min(self.turns[f] * TURN_GROWTH, LONGEST_TURN)
            self._log_improvement(f)
            if progress is not None and search.best is not None:
                progress(self._row(f, search.best.rank))
        return {f: search.best for f, search in self.searches.items() if search.best is not None}

    def _row(self, f: Format, rank: int) -> FormatProgress:
        search, clock = self.searches[f], time.monotonic() - self._begin
        return FormatProgress(f, rank, self.spent[f], search.cpu_seconds, search.flips, clock, self.total)

    def _on_progress(self, f: Format, state: Progress) -> None:
        if state.found is not None:
            self._log_improvement(f)

    def _log_improvement(self, f: Format) -> None:
        """Logs the best rank of `f` if it is below the last one logged."""
        best = self.searches[f].best
        if self.directory is None or best is None or best.rank >= self._logged_ranks.get(f, best.rank + 1):
            return
        self._logged_ranks[f] = best.rank
        row = self._row(f, best.rank)
        line = {"clock seconds": round(row.clock, 1), "format": best.format, "ring": self.ring, "rank": best.rank,
                "sum": row.total, "cpu seconds of the format": round(row.cpu_seconds, 1)}  # fmt: skip
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            append_line(self.directory / LOG, json.dumps(line).encode() + b"\n", durable=False)
        except OSError as error:  # a full disk must not end the search
            warnings.warn(f"{self.directory / LOG} could not be written ({error})", stacklevel=2)

    def _next(self) -> Format | None:
        """The format above its aim with the least time in proportion to its volume squared.

        Large formats take longest, and their schemes project to smaller ones.
        """
        behind = []
        for f, search in self.searches.items():
            if search.best is None or search.best.rank > self.aims.get(f, 0):
                behind.append(f)
        return min(behind, key=lambda f: (self.spent[f] / (f[0] * f[1] * f[2]) ** 2, f), default=None)

    def _known(self, whole: Format) -> dict[Format, list[BilinearScheme]]:
        return {f: search.lowest for f, search in self.searches.items() if f != whole}


def discover_table(
    formats: Sequence[Format] | str = "all",
    ring: str = "Z2",
    seconds: float = 3600.0,
    seed: int = 0,
    workers: int = 1,
    *,
    directory: str | Path | None = None,
    progress: Callable[[FormatProgress], None] | None = None,
) -> dict[Format, BilinearScheme]:
    """The best scheme found for each format in `seconds`; see `Table`. With a directory it resumes.

    Raises:
        BadInput: what `Table` raises, or seconds that are not positive.
    """
    return Table(formats, ring, seed=seed, workers=workers, directory=directory).run(seconds, progress)
