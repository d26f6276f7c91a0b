"""Block sizes of the Triton kernels of product quantisation, ranked by a closed form."""

from __future__ import annotations

from collections.abc import Mapping

from basis_kernels.launch.configuration import Configuration, Hardware, Problem, Space, idle

LINE_BYTES = 64
"""Neighbouring bytes of a table that a program should read at once: two memory transactions."""

CODES = tuple(Configuration({"BN": n, "BC": c}) for n, c in ((16, 16), (64, 16), (32, 32), (16, 64), (4, 32)))
LOOKUPS = tuple(
    Configuration({"BN": n, "BM": m}, warps)
    for n, m, warps in ((4, 256, 4), (4, 128, 4), (1, 256, 4), (1, 128, 2), (1, 64, 1), (2, 64, 2), (16, 64, 4))
)
TABLES = tuple(Configuration({"BN": n, "BM": m}, warps) for n, m, warps in ((32, 64, 4), (64, 64, 8), (16, 128, 4)))


def _codes_grid(blocks: Mapping[str, int], problem: Problem) -> tuple[int, int]:
    return problem.ceil("N", blocks["BN"]), problem.ceil("C", blocks["BC"])


def _sums_grid(blocks: Mapping[str, int], problem: Problem) -> tuple[int, int]:
    return problem.ceil("N", blocks["BN"]), problem.ceil("M", blocks["BM"])


def _codes_cost(configuration: Configuration, problem: Problem, chip: Hardware) -> float:
    blocks = configuration.blocks
    waste = problem.waste("N", blocks["BN"]) * problem.waste("C", blocks["BC"])
    return waste * idle(_codes_grid, blocks, problem, chip)


def _sums_cost(configuration: Configuration, problem: Problem, chip: Hardware) -> float:
    """Padding, idle processors, and reads shorter than a line."""
    blocks = configuration.blocks
    lines = max(1.0, LINE_BYTES / (blocks["BM"] * (1 if problem["INTEGER"] else 4)))
    waste = problem.waste("N", blocks["BN"]) * problem.waste("M", blocks["BM"])
    return waste * lines * idle(_sums_grid, blocks, problem, chip)


def _as_listed(configuration: Configuration) -> int:
    """The interpreter takes as long for a small block as for a large one, so it runs the first."""
    return 0


ENCODE = Space("pq.encode", CODES, ("N", "C"), (), _codes_grid, _codes_cost, smallest=_as_listed)
FEW = Space("pq.sum_few", LOOKUPS, ("N", "C", "M"), ("INTEGER",), _sums_grid, _sums_cost, smallest=_as_listed)
MANY = Space("pq.sum_many", TABLES, ("N", "C", "M"), ("INTEGER",), _sums_grid, _sums_cost, smallest=_as_listed)
