"""Configurations of a Triton kernel and the choice among them: a tuning file's, else the least by a closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

SHARED_BYTES = 160 << 10
"""Shared memory that a block can stage in on every GPU from compute capability 8.0 on."""


@dataclass(frozen=True)
class Configuration:
    """Block sizes by the name of the kernel's argument, and the compiler's options."""

    blocks: Mapping[str, int]
    num_warps: int = 4
    num_stages: int = 3

    def __hash__(self) -> int:
        return hash((*self.blocks.items(), self.num_warps, self.num_stages))

    def to_json(self) -> dict[str, int]:
        return {**self.blocks, "num_warps": self.num_warps, "num_stages": self.num_stages}


@dataclass(frozen=True)
class Hardware:
    """What a closed form needs to know of a GPU; by default that of an H100."""

    name: str = ""
    processors: int = 132
    shared_bytes: int = SHARED_BYTES


@dataclass(frozen=True)
class Problem:
    """One call of a kernel: what a configuration is chosen for.

    Attributes:
        dtype: of the first tensor, such as "bfloat16".
        size: of its elements, in bytes.
        values: the integers and constants that the kernel is called with, by name.
    """

    dtype: str
    size: int
    values: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def ceil(self, name: str, block: int) -> int:
        """Blocks that cover that size."""
        return -(-int(self.values[name]) // block)

    def waste(self, name: str, block: int) -> float:
        """Computed over wanted elements along that size."""
        return self.ceil(name, block) * block / max(1, int(self.values[name]))


Fits = Callable[[Configuration, Problem], bool]
Cost = Callable[[Configuration, Problem, Hardware], float]
Grid = Callable[[Mapping[str, int], Problem], tuple[int, ...]]


def _fits(configuration: Configuration, problem: Problem) -> bool:
    return True


def _same(problem: Problem) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Space:
    """The configurations of one kernel.

    Attributes:
        name: of the kernel in tuning files, such as "stl.encode".
        candidates: all of them.
        sizes: names of the integers by which a tuned problem is near another, in log space.
        exact: names of the constants that both must share.
        grid: (blocks, problem) -> number of programs along each axis.
        cost: relative time by a closed form; candidates of equal cost keep their order.
        fits: whether a configuration suits the problem and the chip.
        layout: further properties, derived from the problem, that both must share.
        smallest: sort key; the interpreter runs the first, whose many edges are worth testing.
        most: number of candidates that are timed when tuning, those of least cost.
    """

    name: str
    candidates: tuple[Configuration, ...]
    sizes: tuple[str, ...]
    exact: tuple[str, ...]
    grid: Grid
    cost: Cost
    fits: Fits = _fits
    layout: Callable[[Problem], dict[str, Any]] = _same
    smallest: Callable[[Configuration], Any] = lambda c: math.prod(c.blocks.values())
    most: int = 8

    def ranked(self, problem: Problem, hardware: Hardware) -> list[Configuration]:
        """Those that fit the problem, of least cost first; never empty."""
        found = [c for c in self.candidates if self.fits(c, problem)] or [min(self.candidates, key=self.smallest)]
        return sorted(found, key=lambda c: self.cost(c, problem, hardware))

    def interpreted(self, problem: Problem) -> Configuration:
        """The smallest that fits."""
        return min((c for c in self.candidates if self.fits(c, problem)), key=self.smallest)

    def sizes_of(self, problem: Problem) -> dict[str, int]:
        return {name: int(problem[name]) for name in self.sizes}

    def exact_of(self, problem: Problem) -> dict[str, Any]:
        return {"dtype": problem.dtype, **{name: problem[name] for name in self.exact}, **self.layout(problem)}


def idle(grid: Grid, blocks: Mapping[str, int], problem: Problem, hardware: Hardware) -> float:
    """The factor by which a launch with fewer programs than processors is slower than a full one."""
    return max(1.0, hardware.processors / max(1, math.prod(grid(blocks, problem))))
