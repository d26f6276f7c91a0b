"""Block sizes of a Monarch chain's one launch: those whose accumulators and operands fit on chip."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from basis_kernels.launch.configuration import SHARED_BYTES, Configuration, Hardware, Problem, Space, idle

CANDIDATES = tuple(
    Configuration({"BN": n, "BH": h, "BL": el}, warps, stages)
    for n, h, el, warps, stages in (
        (32, 32, 16, 8, 2), (32, 16, 16, 8, 2), (16, 32, 16, 8, 2), (16, 16, 16, 4, 2), (64, 16, 16, 16, 2),
        (16, 64, 16, 8, 2), (16, 32, 32, 8, 2), (16, 16, 16, 8, 1),
    )
)  # fmt: skip


def power(n: int) -> int:
    """The next power of two from 16 on."""
    return max(16, 1 << max(0, n - 1).bit_length())


def blocks_of_z(q: int, r: int) -> int:
    """Blocks of K_2 that a program computes: a power of two, with at least 16 rows of z."""
    return max(1 << max(0, q - 1).bit_length(), 16 // r)


def accumulators(configuration: Configuration, q: int, r: int, p: int) -> float:
    """Per thread: z for all (i,s) and y for all j."""
    n, el = configuration.blocks["BN"], configuration.blocks["BL"]
    return (blocks_of_z(q, r) * r + power(p)) * n * el / (32 * configuration.num_warps)


def _fits(configuration: Configuration, shape: tuple[int, int, int], size: int, precision: str) -> bool:
    (q, r, p), block = shape, configuration.blocks
    staged = max(1, configuration.num_stages) * max(1, q) * block["BH"] * (block["BN"] + r * block["BL"]) * size
    turned = block["BL"] * (block["BN"] * max(16, q * r) + max(16, q * r) * power(p)) * size
    room = 128 if size == 2 or precision == "tf32" else 64  # the rest is for operands
    return accumulators(configuration, q, r, p) <= room and max(staged, turned) <= SHARED_BYTES


def _fits_problem(configuration: Configuration, problem: Problem) -> bool:
    shape = (problem["q"], problem["R"], problem["p"])
    return _fits(configuration, shape, problem.size, problem["PRECISION"])


@lru_cache(maxsize=1024)
def fits(left: tuple[int, int, int, int], right: tuple[int, int, int, int], size: int, precision: str = "ieee") -> bool:
    """Whether patterns (1,p,qr,m), (q,rm,h,1) with values of `size` bytes fit in one launch."""
    (a, p, c, m), (q, b, _, d) = left, right
    if a != 1 or d != 1 or c % q or b != c // q * m:
        return False
    r = c // q
    possible = r & (r - 1) == 0 and r <= 16 and q * r >= 8
    return possible and any(_fits(f, (q, r, p), size, precision) for f in CANDIDATES)


def _grid(blocks: Mapping[str, int], problem: Problem) -> tuple[int]:
    return (problem.ceil("m", blocks["BL"]) * problem.ceil("batch", blocks["BN"]),)


def _cost(configuration: Configuration, problem: Problem, chip: Hardware) -> float:
    """Weights are read once for BN rows, x once for BL values of l, with padding."""
    n, el = configuration.blocks["BN"], configuration.blocks["BL"]
    waste = problem.waste("batch", n) * problem.waste("m", el) * problem.waste("h", configuration.blocks["BH"])
    return waste * (1 / n + 1 / (int(problem["R"]) * el)) * idle(_grid, configuration.blocks, problem, chip)


MONARCH = Space(
    "kronecker.monarch", CANDIDATES, ("batch", "p", "q", "m", "h"), ("R", "PRECISION"), _grid, _cost, _fits_problem,
    layout=lambda problem: {"contiguous": "features" if problem["x_f"] == 1 else "rows"},
    smallest=lambda c: (c.blocks["BN"] * c.blocks["BH"] * c.blocks["BL"], -c.num_warps),
)  # fmt: skip
