"""Kronecker-sparse factorisation: errors against published ones, polish, bounds, choice of a chain, enumeration."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from basis_search.errors import BadInput
from basis_search.evaluation.timing import torch_threads
from basis_search.families import kronecker
from basis_search.families.kronecker import KroneckerChain, MeasuredCosts

Rows = list[dict[str, Any]]
BATCH = 256
SHARES = (0.1, 0.25, 0.5)
"""Budgets, as shares of the dense layer's time."""
DENSITIES = (0.03125, 0.0625, 0.125, 0.25, 0.5)
"""Densities of the Monarch candidates, which come in addition to the cheapest chains."""


def gaussian(side: int) -> Tensor:
    """numpy default_rng(0).standard_normal, [side, side] float64."""
    return torch.from_numpy(np.random.default_rng(0).standard_normal((side, side)))


def fourier(side: int) -> Tensor:
    """The DFT with its columns in bit-reversed order."""
    bits = side.bit_length() - 1
    return torch.from_numpy(np.fft.fft(np.eye(side))[:, [int(f"{i:0{bits}b}"[::-1], 2) for i in range(side)]])


def cases() -> Iterator[tuple[str, Tensor, KroneckerChain, dict[str, Any], float | None]]:
    """(name, matrix, chain, options of factorize, the published error)."""
    dyadic, monarch = KroneckerChain.dyadic, KroneckerChain.monarch
    hadamard = torch.from_numpy(scipy.linalg.hadamard(512)).double()
    yield "Hadamard 512, dyadic", hadamard, dyadic(512), {}, 5e-15
    yield "Hadamard 512, Monarch", hadamard, monarch(512, 512, 16, 32), {}, 5.7e-16
    yield "DFT 256 bit-reversed, dyadic", fourier(256), dyadic(256), {}, 2.07e-14
    for order, plain, orthonormal in (("left", 0.8946958, 0.8934101), ("balanced", 0.9025004, 0.8995714)):
        for orthonormalize, known in ((True, orthonormal), (False, plain)):
            name = f"Gaussian 64, dyadic, {order}{', orthonormalised' if orthonormalize else ''}"
            yield name, gaussian(64), dyadic(64), {"order": order, "orthonormalize": orthonormalize}, known
    yield "Gaussian 128, dyadic", gaussian(128), dyadic(128), {}, None
    yield "Gaussian 64, Monarch", gaussian(64), monarch(64, 64, 8, 8), {}, 0.7778414161
    yield "Gaussian 256, Monarch", gaussian(256), monarch(256, 256, 16, 16), {}, 0.8863653873
    for r, known in ((1, 0.8863654), (2, 0.7857476), (4, 0.6084897), (8, 0.3212474)):
        chain = KroneckerChain.of((1, 16, 16 * r, 16), (16, 16 * r, 16, 1))
        yield f"Gaussian 256, Monarch of rank {r}", gaussian(256), chain, {}, known
    yield "redundant (1,4,16,8)*(4,32,8,1)", gaussian(32), KroneckerChain.of((1, 4, 16, 8), (4, 32, 8, 1)), {}, 8e-16
    yield "Gaussian 1024, dyadic", gaussian(1024), dyadic(1024), {}, None
    yield "Gaussian 1024, Monarch", gaussian(1024), monarch(1024, 1024, 32, 32), {}, None
    yield "Gaussian 4096, Monarch", gaussian(4096), monarch(4096, 4096, 64, 64), {}, None


def fit(device: str, threads: int) -> Rows:
    """factorize() without and with polish: relative Frobenius errors; bounds and seconds without."""
    rows = []
    with torch_threads(threads):
        for name, matrix, chain, options, known in cases():
            start = time.perf_counter()
            plain = kronecker.factorize(matrix, chain, polish=False, **options)
            seconds = time.perf_counter() - start
            polished = kronecker.factorize(matrix, chain, **options).error if len(matrix) <= 256 else None
            rows.append(
                {
                    "case": name, "error": plain.error, "known": known, "polished": polished,
                    "lower bound": plain.lower_bound, "upper bound": plain.upper_bound, "seconds": seconds,
                }
            )  # fmt: skip
    return rows


def decaying(rows: int, columns: int) -> Tensor:
    """Weights with singular values 1 / sqrt(k), k = 1, 2, ..., and random singular vectors."""
    draw = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(rows, rows, generator=draw, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, columns, generator=draw, dtype=torch.float64)).Q
    count = min(rows, columns)
    values = torch.arange(1, count + 1, dtype=torch.float64) ** -0.5
    matrix: Tensor = (left[:, :count] * values) @ right[:, :count].T
    return matrix


def choose(device: str, threads: int) -> Rows:
    """choose_chain() among cheapest and Monarch chains, best_fusion() of dyadic ones, both by measured costs."""
    rows: Rows = []
    with torch_threads(threads):
        for name, matrix in (
            ("Gaussian 256 x 256", gaussian(256)),
            ("Hadamard 256 x 256", torch.from_numpy(scipy.linalg.hadamard(256)).double()),
            ("decaying 384 x 1536", decaying(384, 1536)),
        ):
            height, width = matrix.shape
            costs = MeasuredCosts(BATCH)
            dense = costs.dense(height, width)
            chains = kronecker.cheapest_chains(height, width, 60, max_density=0.6)
            for density in DENSITIES:
                chains += kronecker.monarch_chains(height, width, density)
            for share in SHARES:
                rows.append(_chosen(f"{name}, {share:.0%} of dense time", matrix, chains, share * dense, costs, dense))
        for side in (256, 1024):
            costs = MeasuredCosts(BATCH)
            chain = KroneckerChain.dyadic(side)
            start = time.perf_counter()
            groups, least = kronecker.best_fusion(chain, costs)
            dense = costs.dense(side, side)
            rows.append(
                {
                    "case": f"dyadic {side}, fused by measured costs", "chain": str(chain.fuse(groups)),
                    "time/dense": least / dense, "unfused/dense": sum(map(costs, chain)) / dense,
                    "seconds": time.perf_counter() - start,
                }
            )  # fmt: skip
    return rows


def _chosen(
    case: str, matrix: Tensor, chains: list[KroneckerChain], budget: float, costs: MeasuredCosts, dense: float
) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        choice = kronecker.choose_chain(matrix, chains, budget, costs, sweeps=5)
    except BadInput as reason:
        return {"case": case, "failure": str(reason)}
    return {
        "case": case, "chain": str(choice.chain), "error": choice.factorization.error,
        "lower bound": choice.factorization.lower_bound, "time/dense": choice.cost / dense,
        "considered": choice.considered, "factorised": choice.factorized, "seconds": time.perf_counter() - start,
    }  # fmt: skip


def enumeration(device: str, threads: int) -> Rows:
    """The 100 cheapest chains of a 4096 x 11008 layer with at most a quarter of the values; the limit is 2 s."""
    with torch_threads(threads):
        start = time.perf_counter()
        chains = kronecker.cheapest_chains(4096, 11008, 100, max_density=0.25)
        seconds = time.perf_counter() - start
    least, most = min(c.nnz for c in chains), max(c.nnz for c in chains)
    row = {"case": f"{len(chains)} cheapest of 4096 x 11008", "seconds": seconds, "limit": 2.0}
    return [row | {"least nnz": least, "most nnz": most, "most density": max(c.density for c in chains)}]


PARTS: dict[str, Callable[..., Rows]] = {"fit": fit, "choose": choose, "enumerate": enumeration}
