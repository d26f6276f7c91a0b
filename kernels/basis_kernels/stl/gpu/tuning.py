"""Block sizes of the Strassen-Tile kernels: only those whose sums fit in registers, ranked by a closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping

from basis_kernels.launch.configuration import Configuration, Hardware, Problem, Space, idle

MOST_PROGRAMS = 512
"""Programs of a basis' gradient, each of which sums a share of the tile rows; torch adds the sums in a fixed order."""

SUMS_PER_THREAD = 128
"""Float32 sums per thread besides the current product; more would spill."""

START = 16
"""What starting a program costs, in tiles of its block."""

TILES = tuple(Configuration({"BT": tiles}, warps) for tiles, warps in ((256, 8), (128, 8), (128, 4), (64, 4)))
"""Tiles of one tile row that a program encodes or decodes."""

SUMMED = tuple(Configuration({"BT": tiles}, 4, stages) for tiles, stages in ((128, 2), (64, 3), (32, 2)))

PRODUCTS = tuple(
    Configuration({"BM": m, "BN": n, "BK": k, "GROUP": 8}, warps, stages)
    for m, n, k, warps, stages in (
        (64, 32, 64, 8, 4), (32, 64, 64, 8, 4), (64, 32, 64, 8, 3), (64, 32, 32, 8, 4), (32, 32, 64, 4, 4),
        (32, 32, 32, 4, 4), (16, 64, 64, 4, 4), (64, 16, 64, 4, 4), (128, 64, 64, 8, 3), (64, 64, 64, 8, 3),
        (128, 64, 32, 8, 3), (128, 128, 32, 8, 3), (16, 32, 32, 4, 3), (16, 16, 16, 4, 2),
    )
)  # fmt: skip


def fits_tiles(configuration: Configuration, problem: Problem) -> bool:
    """Not wide blocks of float32 tiles other than 4 x 4: they need the registers of more threads."""
    wide = problem.size == 4 and problem["T"] != 4
    return not wide or configuration.blocks["BT"] <= 16 * configuration.num_warps


def fits_products(configuration: Configuration, problem: Problem) -> bool:
    """The t*t decoded sums fit: with tile 4 at most BM BN = 2048 on 8 warps."""
    m, n, k = (configuration.blocks[name] for name in ("BM", "BN", "BK"))
    sums = problem["T"] ** 2 * m * n
    return bool(sums <= SUMS_PER_THREAD * 32 * configuration.num_warps and k <= (32 if problem.size == 4 else 64))


def _rows_of_tiles(width: str, blocks: Mapping[str, int], problem: Problem) -> tuple[int]:
    return (int(problem["N"]) * problem.ceil(width, blocks["BT"]),)


def _encode_grid(blocks: Mapping[str, int], problem: Problem) -> tuple[int]:
    return _rows_of_tiles("K", blocks, problem)


def _decode_grid(blocks: Mapping[str, int], problem: Problem) -> tuple[int]:
    return _rows_of_tiles("M", blocks, problem)


def _gradient_grid(blocks: Mapping[str, int], problem: Problem) -> tuple[int]:
    return (min(MOST_PROGRAMS, int(problem["N"])),)


def _products_grid(blocks: Mapping[str, int], problem: Problem) -> tuple[int]:
    return (problem.ceil("N", blocks["BM"]) * problem.ceil("M", blocks["BN"]),)


def _tiles_cost(width: str, configuration: Configuration, problem: Problem, chip: Hardware) -> float:
    """Wide blocks have whole memory lines and few starts, if there are two programs for each processor."""
    block = configuration.blocks["BT"]
    programs = _rows_of_tiles(width, configuration.blocks, problem)[0]
    return problem.waste(width, block) * (1 + START / block) * max(1.0, 2 * chip.processors / programs)


def _encode_cost(configuration: Configuration, problem: Problem, chip: Hardware) -> float:
    return _tiles_cost("K", configuration, problem, chip)


def _decode_cost(configuration: Configuration, problem: Problem, chip: Hardware) -> float:
    return _tiles_cost("M", configuration, problem, chip)


def _gradient_cost(configuration: Configuration, problem: Problem, chip: Hardware) -> float:
    return problem.waste("K", configuration.blocks["BT"]) * (1 + START / configuration.blocks["BT"])


def _products_cost(configuration: Configuration, problem: Problem, chip: Hardware) -> float:
    """Traffic between caches, which bounds blocks as small as these."""
    m, n = configuration.blocks["BM"], configuration.blocks["BN"]
    traffic = problem.waste("N", m) * problem.waste("M", n) * (1 / m + 1 / n)
    return traffic * idle(_products_grid, configuration.blocks, problem, chip)


def _blocks(configuration: Configuration) -> tuple[int, ...]:
    return math.prod(configuration.blocks.values()), configuration.num_warps


ENCODE = Space(
    "stl.encode", TILES, ("rows", "K", "R"), ("T", "PRECISION"), _encode_grid, _encode_cost, fits_tiles,
    smallest=_blocks,
)  # fmt: skip
DECODE = Space(
    "stl.decode", TILES, ("rows", "M", "R"), ("T", "PRECISION"), _decode_grid, _decode_cost, fits_tiles,
    smallest=_blocks,
)  # fmt: skip
GRADIENT = Space(
    "stl.gradient", SUMMED, ("rows", "K", "R"), ("T", "PRECISION"), _gradient_grid, _gradient_cost, fits_tiles,
    smallest=_blocks,
)  # fmt: skip
FUSED = Space(
    "stl.multiply_decode", PRODUCTS, ("rows", "K", "M", "R"), ("T", "PRECISION"), _products_grid, _products_cost,
    fits_products, smallest=_blocks,
)  # fmt: skip


def at_least_16(count: int) -> int:
    """The next power of two from 16 on, the smallest side of a matrix instruction."""
    return max(16, 1 << (count - 1).bit_length())
