"""Tile sizes to time when tuning a factor: none larger than the factor, none too large for the chip."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import triton

SHARED_BYTES = 160 << 10
"""Shared memory that a block can stage in on every GPU from compute capability 8.0 on."""
REGISTERS = {"half": (128, 128), "tf32": (128, 128), "ieee": (128, 48), "tf32x3": (64, 24)}
"""32-bit accumulators per thread that leave room for operands, for (one block, several blocks) per program."""

TRANSACTION_BYTES = 32
"""Bytes of a memory transaction."""
CONFIGS_TIMED = 8
"""Number of configurations compiled and timed: those of least predicted traffic."""

FACTOR = tuple(  # of products with a factor that uses tensor cores
    triton.Config({"BN": n, "BJ": j, "BK": k, "BL": el}, num_warps=warps, num_stages=stages)
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

GRADIENT = tuple(  # of the gradient with respect to a factor
    triton.Config({"BN": n, "BJ": j, "BK": k, "BL": el}, num_warps=warps, num_stages=stages)
    for n, j, k, el, warps, stages in (
        (32, 128, 128, 1, 8, 3), (32, 64, 128, 1, 4, 3), (32, 128, 64, 1, 4, 3), (32, 64, 64, 1, 4, 4),
        (64, 64, 64, 1, 4, 3), (32, 32, 32, 1, 4, 4), (64, 16, 16, 1, 2, 3), (32, 16, 16, 1, 1, 3),
        (16, 32, 32, 16, 8, 2), (16, 64, 32, 16, 8, 2), (16, 32, 64, 16, 8, 2), (16, 16, 16, 16, 4, 3),
        (32, 16, 16, 16, 4, 2), (16, 64, 64, 8, 8, 2), (16, 32, 32, 8, 4, 2), (16, 16, 16, 8, 4, 3),
        (16, 32, 32, 4, 4, 3), (16, 16, 16, 4, 2, 3), (16, 16, 16, 2, 2, 3), (16, 16, 16, 1, 1, 3),
    )
)  # fmt: skip

SMALL = tuple(  # of products with a factor of small blocks, without tensor cores
    triton.Config({"BN": n, "BP": p}, num_warps=warps, num_stages=1)
    for n, p, warps in ((1, 256, 2), (4, 128, 4), (8, 64, 4), (4, 32, 2), (16, 32, 4), (32, 16, 4), (64, 4, 4))
)


def _power(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _one_if_interpreted(configs: list[Any], arguments: Mapping[str, Any]) -> list[Any]:
    """In the interpreter, which cannot be timed, only the smallest tile, over as many l as possible."""
    if arguments["x"].device.type != "cpu":
        return configs
    return sorted(configs, key=lambda f: (f.kwargs["BN"] * f.kwargs.get("BJ", 1), -f.kwargs.get("BL", 1)))[:1]


def prune_products(configs: Iterable[Any], arguments: Mapping[str, Any], **kwargs: Any) -> list[Any]:
    """The most promising configurations that fit the factor; tiles span l only where l is contiguous in memory."""
    arguments = {**arguments, **kwargs}
    b, c, size = arguments["b"], arguments["c"], arguments["x"].element_size()
    together = min(16, _power(arguments["d"])) if arguments["x_l"] == 1 else 1
    room = REGISTERS[arguments["PRECISION"] if size == 4 else "half"]
    kept = []
    for config in configs:
        tile = config.kwargs
        n, j, k, el = tile["BN"], tile["BJ"], tile["BK"], tile["BL"]
        if "splits" in arguments:  # the gradient: sums over n
            inputs, sums = n * (k + j), k * j
        else:
            inputs, sums = k * (n + j), n * j
        staged, held = config.num_stages * el * inputs * size, el * sums / (32 * config.num_warps)
        wide = j <= max(16, _power(b)) and k <= max(16, _power(c)) and (el == 1) == (together == 1) and el <= together
        if wide and staged <= SHARED_BYTES and held <= room[el > 1]:
            kept.append(config)
    kept.sort(key=lambda f: _traffic(f, arguments))
    return _one_if_interpreted(kept[:CONFIGS_TIMED], arguments)


def _traffic(config: Any, arguments: Mapping[str, Any]) -> float:
    """Relative memory traffic per useful multiplication, including padding and partly used memory lines."""
    tile, size = config.kwargs, arguments["x"].element_size()
    sides = {"BN": arguments["rows"], "BJ": arguments["b"], "BK": arguments["c"], "BL": arguments["d"]}
    waste = 1.0
    for name, side in sides.items():
        waste *= -(-side // tile[name]) * tile[name] / side
    if tile["BL"] > 1:
        waste *= max(1.0, TRANSACTION_BYTES / (tile["BL"] * size))
    first, second = ("BK", "BJ") if "splits" in arguments else ("BN", "BJ")
    return float(waste * (1 / tile[first] + 1 / tile[second]))


def prune_small(configs: Iterable[Any], arguments: Mapping[str, Any], **kwargs: Any) -> list[Any]:
    """Configurations whose values of x stay in registers."""
    arguments = {**arguments, **kwargs}
    kept = [f for f in configs if f.kwargs["BN"] * f.kwargs["BP"] * arguments["CP"] / (32 * f.num_warps) <= 96]
    return _one_if_interpreted(kept, arguments)
