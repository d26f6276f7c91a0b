"""Tile sizes of a factor's kernels: none larger than the factor, none too large for the chip, least traffic first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from basis_kernels.launch.configuration import SHARED_BYTES, Configuration, Hardware, Problem, Space, idle

REGISTERS = {"half": (128, 128), "tf32": (128, 128), "ieee": (128, 48), "tf32x3": (64, 24)}
"""32-bit accumulators per thread that leave room for operands, for (one block, several blocks) per program."""

TRANSACTION_BYTES = 32
"""Bytes of a memory transaction."""

PRODUCTS = tuple(  # of products with a factor that uses tensor cores
    Configuration({"BN": n, "BJ": j, "BK": k, "BL": el}, warps, stages)
    for n, j, k, el, warps, stages in (
        # one dense block per program: BL = 1
        (128, 128, 32, 1, 8, 3), (128, 64, 32, 1, 4, 4), (64, 128, 32, 1, 4, 4), (128, 64, 64, 1, 8, 3),
        (64, 64, 32, 1, 4, 4), (64, 64, 64, 1, 4, 3), (128, 32, 32, 1, 4, 4), (64, 32, 32, 1, 4, 4),
        (128, 16, 16, 1, 4, 4), (64, 16, 16, 1, 2, 4), (32, 32, 32, 1, 2, 4), (32, 16, 16, 1, 1, 3),
        # neighbouring blocks together, so that whole lines of x are used where the stride is d
        (32, 64, 16, 16, 8, 2), (64, 32, 16, 16, 8, 2), (32, 32, 32, 16, 8, 2),
        (32, 32, 16, 16, 8, 3), (64, 16, 16, 16, 8, 3), (32, 16, 16, 16, 4, 3), (16, 16, 16, 16, 4, 3),
        (64, 64, 16, 8, 8, 2), (64, 32, 32, 8, 8, 2), (32, 32, 16, 8, 4, 3),
        (64, 16, 16, 8, 4, 3), (32, 16, 16, 8, 4, 3), (16, 16, 16, 8, 2, 3), (64, 32, 16, 4, 4, 3),
        (64, 64, 32, 4, 8, 2), (32, 16, 16, 4, 2, 3), (16, 16, 16, 4, 2, 3), (32, 32, 16, 2, 2, 3),
        (32, 16, 16, 2, 2, 3), (16, 16, 16, 2, 1, 3), (16, 16, 16, 1, 1, 3),
    )
)  # fmt: skip

SUMS = tuple(  # of the gradient with respect to a factor
    Configuration({"BN": n, "BJ": j, "BK": k, "BL": el}, warps, stages)
    for n, j, k, el, warps, stages in (
        (32, 128, 128, 1, 8, 3), (32, 64, 128, 1, 4, 3), (32, 128, 64, 1, 4, 3), (32, 64, 64, 1, 4, 4),
        (64, 64, 64, 1, 4, 3), (32, 32, 32, 1, 4, 4), (64, 16, 16, 1, 2, 3), (32, 16, 16, 1, 1, 3),
        (16, 32, 32, 16, 8, 2), (16, 64, 32, 16, 8, 2), (16, 32, 64, 16, 8, 2), (16, 16, 16, 16, 4, 3),
        (32, 16, 16, 16, 4, 2), (16, 64, 64, 8, 8, 2), (16, 32, 32, 8, 4, 2), (16, 16, 16, 8, 4, 3),
        (16, 32, 32, 4, 4, 3), (16, 16, 16, 4, 2, 3), (16, 16, 16, 2, 2, 3), (16, 16, 16, 1, 1, 3),
    )
)  # fmt: skip

BLOCKS = tuple(  # of products with a factor of small blocks, without tensor cores
    Configuration({"BN": n, "BP": p}, warps, 1)
    for n, p, warps in ((1, 256, 2), (4, 128, 4), (8, 64, 4), (4, 32, 2), (16, 32, 4), (32, 16, 4), (64, 4, 4))
)


def _power(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _together(problem: Problem) -> int:
    """Neighbouring l that a program computes at most: several only where l is contiguous in memory."""
    return min(16, _power(problem["d"])) if problem["x_l"] == 1 else 1


def fits_products(configuration: Configuration, problem: Problem) -> bool:
    """No tile much larger than the factor; operands fit into shared memory and sums into registers."""
    n, j, k, el = (configuration.blocks[name] for name in ("BN", "BJ", "BK", "BL"))
    room = REGISTERS[problem["PRECISION"] if problem.size == 4 else "half"]
    # The gradient sums over n.
    inputs, sums = (n * (k + j), k * j) if "splits" in problem.values else (k * (n + j), n * j)
    staged = configuration.num_stages * el * inputs * problem.size
    accumulators = el * sums / (32 * configuration.num_warps)
    wide = j <= max(16, _power(problem["b"])) and k <= max(16, _power(problem["c"]))
    together = _together(problem)
    return bool(
        wide
        and (el == 1) == (together == 1)
        and el <= together
        and staged <= SHARED_BYTES
        and accumulators <= room[el > 1]
    )


def fits_blocks(configuration: Configuration, problem: Problem) -> bool:
    """Values of x stay in registers."""
    values = configuration.blocks["BN"] * configuration.blocks["BP"] * problem["CP"]
    return bool(values / (32 * configuration.num_warps) <= 96)


def _products_grid(blocks: Mapping[str, int], problem: Problem) -> tuple[int]:
    tiles = problem.ceil("b", blocks["BJ"]) * problem.ceil("d", blocks["BL"]) * problem.ceil("batch", blocks["BN"])
    return (tiles * int(problem["a"]),)


def _sums_grid(blocks: Mapping[str, int], problem: Problem) -> tuple[int]:
    tiles = problem.ceil("b", blocks["BJ"]) * problem.ceil("c", blocks["BK"]) * problem.ceil("d", blocks["BL"])
    return (tiles * int(problem["a"]) * int(problem["splits"]),)


def _blocks_grid(blocks: Mapping[str, int], problem: Problem) -> tuple[int]:
    tiles = -(-int(problem["a"]) * int(problem["d"]) // blocks["BP"])
    return (tiles * problem.ceil("batch", blocks["BN"]),)


def _traffic(configuration: Configuration, problem: Problem, first: str, second: str) -> float:
    """Relative memory traffic per useful multiplication, including padding and partly used memory lines."""
    blocks, waste = configuration.blocks, 1.0
    for name, size in (("BN", "batch"), ("BJ", "b"), ("BK", "c"), ("BL", "d")):
        waste *= problem.waste(size, blocks[name])
    if blocks["BL"] > 1:
        waste *= max(1.0, TRANSACTION_BYTES / (blocks["BL"] * problem.size))
    return waste * (1 / blocks[first] + 1 / blocks[second])


def _products_cost(configuration: Configuration, problem: Problem, chip: Hardware) -> float:
    return _traffic(configuration, problem, "BN", "BJ") * idle(_products_grid, configuration.blocks, problem, chip)


def _sums_cost(configuration: Configuration, problem: Problem, chip: Hardware) -> float:
    return _traffic(configuration, problem, "BK", "BJ") * idle(_sums_grid, configuration.blocks, problem, chip)


def _blocks_cost(configuration: Configuration, problem: Problem, chip: Hardware) -> float:
    """Padding, and memory lines of which neighbouring programs use the rest."""
    n, p = configuration.blocks["BN"], configuration.blocks["BP"]
    contiguous = n if problem["x_n"] == 1 else p
    lines = max(1.0, TRANSACTION_BYTES / (contiguous * problem.size))
    count = int(problem["a"]) * int(problem["d"])
    waste = -(-count // p) * p / count * problem.waste("batch", n)
    return waste * lines * idle(_blocks_grid, configuration.blocks, problem, chip)


def _layout(problem: Problem) -> dict[str, Any]:
    """Which index is contiguous in memory."""
    names = {"x_n": "rows", "x_l": "l", "x_k": "k"}
    return {"contiguous": next((names[name] for name in names if problem[name] == 1), "none")}


def _smallest(configuration: Configuration) -> tuple[int, int]:
    """The least tile, over as many l as possible."""
    return configuration.blocks["BN"] * configuration.blocks.get("BJ", 1), -configuration.blocks.get("BL", 1)


FACTOR = Space(
    "kronecker.factor", PRODUCTS, ("batch", "a", "b", "c", "d"), ("PRECISION",), _products_grid, _products_cost,
    fits_products, _layout, _smallest,
)  # fmt: skip
GRADIENT = Space(
    "kronecker.gradient", SUMS, ("batch", "a", "b", "c", "d"), ("PRECISION",), _sums_grid, _sums_cost,
    fits_products, _layout, _smallest,
)  # fmt: skip
SMALL = Space(
    "kronecker.small", BLOCKS, ("batch", "a", "c", "d"), ("B",), _blocks_grid, _blocks_cost, fits_blocks, _layout,
    _smallest,
)  # fmt: skip
