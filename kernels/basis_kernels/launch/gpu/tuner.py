"""Chooses configurations by measuring them, while it is active; writes each choice to a tuning file at once."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from basis_kernels.launch import tuning_file
from basis_kernels.launch.configuration import Configuration, Hardware, Problem, Space
from basis_kernels.launch.gpu.failures import FAILURES

Call = Callable[[], object]


class NotTimed(Exception):
    """A configuration runs, but cannot be timed."""


UNMEASURED: tuple[type[Exception], ...] = (*FAILURES, NotTimed)


class OutOfTime(Exception):
    """The tuner's time limit has passed."""


class Tuner:
    """Within `running`, every launch of a problem that the file does not know yet times its configurations.

    Args:
        path: the tuning file; its entries are kept, so that an interrupted tuning goes on.
        gpu: name of the GPU, stored in it.
        seconds_of: seconds of one call.
        limit: seconds after which `OutOfTime` is raised; None for no limit.

    Attributes:
        measured, known: problems measured now and found in the file.
        failures: per kernel and configuration that cannot run, the reason.
    """

    active: ClassVar[Tuner | None] = None

    def __init__(self, path: Path, gpu: str, seconds_of: Callable[[Call], float], limit: float | None = None):
        self.path, self.gpu, self.seconds_of = path, gpu, seconds_of
        self.entries: list[tuning_file.Entry] = tuning_file.read(path) if path.exists() else []
        self.deadline = None if limit is None else time.monotonic() + limit
        self.measured = self.known = 0
        self.failures: dict[tuple[str, str], str] = {}
        self.latest: dict[str, int] = {}  # place of the entry chosen last, by kernel

    @contextlib.contextmanager
    def running(self) -> Iterator[Tuner]:
        before, Tuner.active = Tuner.active, self
        try:
            yield self
        finally:
            Tuner.active = before

    def place_of(self, space: Space, problem: Problem) -> int | None:
        """Of the file's entry of that very problem."""
        exact, sizes = space.exact_of(problem), space.sizes_of(problem)
        for place, entry in enumerate(self.entries):
            if (entry["kernel"], entry["exact"], entry["sizes"]) == (space.name, exact, sizes):
                return place
        return None

    def choose(
        self, space: Space, problem: Problem, chip: Hardware, launch: Callable[[Configuration], object]
    ) -> Configuration:
        """The fastest configuration, from the file or measured now.

        Args:
            space, problem, chip: of the kernel that is launched.
            launch: launches it once with a configuration.
        """
        ranked = space.ranked(problem, chip)
        place = self.place_of(space, problem)
        for configuration in ranked if place is not None else ():
            if place is not None and configuration.to_json() == self.entries[place]["configuration"]:
                self.known += 1
                self.latest[space.name] = place
                return configuration
        times: dict[Configuration, float] = {}
        failure: Exception | None = None
        for configuration in ranked[: space.most]:
            if self.deadline is not None and time.monotonic() > self.deadline:
                raise OutOfTime
            try:
                times[configuration] = self._time(launch, configuration)
            except UNMEASURED as problem_of_it:
                failure = problem_of_it
                reason = f"{type(problem_of_it).__name__}: {problem_of_it}"
                self.failures[space.name, str(configuration.to_json())] = reason
        if failure is not None and not times:
            raise failure
        best = min(times, key=lambda c: times[c])
        first = next(iter(times))
        self._store(
            {
                "kernel": space.name,
                "exact": space.exact_of(problem),
                "sizes": space.sizes_of(problem),
                "configuration": best.to_json(),
                "microseconds": 1e6 * times[best],
                "closed_form_microseconds": 1e6 * times[first],
            }
        )
        self.measured += 1
        return best

    def _time(self, launch: Callable[[Configuration], object], configuration: Configuration) -> float:
        return self.seconds_of(lambda: launch(configuration))

    def uncompared(self, space: Space) -> bool:
        """Whether the entry chosen last for that kernel lacks the comparison with another way."""
        place = self.latest.get(space.name)
        return place is not None and "other_microseconds" not in self.entries[place]

    def compare(self, space: Space, own: float, other: float) -> None:
        """Adds to the entry chosen last for that kernel the seconds of a layer with it, and with another way."""
        place = self.latest[space.name]
        times = {"whole_microseconds": 1e6 * own, "other_microseconds": 1e6 * other}
        self.entries[place] = {**self.entries[place], **times}
        tuning_file.write(self.path, self.gpu, self.entries)

    def _store(self, entry: dict[str, Any]) -> None:
        self.entries.append(entry)
        self.latest[entry["kernel"]] = len(self.entries) - 1
        tuning_file.write(self.path, self.gpu, self.entries)
