"""Residual ||T - [[U, V, W]]||^2 / ||T||^2 of 4x4x4 bases by starting point, after the same descent from each.

Every start is thinned to the rank (dropping in turn the term that the others replace best), then takes 200 sweeps of
alternating least squares and damped Newton steps, all at ridge 1e-3.
"""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from basis_search.bench.stored_results import StoredResults
from basis_search.schemes.numerical import starts
from basis_search.schemes.numerical.gauss_newton import Array
from basis_search.schemes.numerical.least_squares import (
    Factors,
    alternate,
    balance,
    largest_coefficient,
    polish,
    product_tensor,
    residual,
)

Rows = list[dict[str, Any]]

RANKS = (16, 24, 32, 40, 47)
STARTS = ("random", "exact", "polynomial", "discovered", "product")
LABELS = {
    "exact": "Strassen squared",
    "discovered": "discovered (4x4x4:49 over the integers)",
    "product": "products of smaller bases",
}
SEEDS = 16
FORM = (4, 4, 4)
RIDGE, SWEEPS, STEPS = 1e-3, 200, 8
RESULTS = Path("runs") / "stl-starts.json"


def by_start(device: str, threads: int) -> Rows:
    """One row per rank and start: median, minimum, mean and standard deviation of the residual over the seeds."""
    results = StoredResults(RESULTS)
    rows: Rows = []
    for rank in RANKS:
        medians: dict[str, float] = {}
        for name in STARTS:
            found = [results.of(f"{rank} {name} {seed}", partial(one, rank, name, seed)) for seed in range(SEEDS)]
            residuals = [pair[0] for pair in found]
            medians[name] = statistics.median(residuals)
            rows.append(
                {
                    "case": f"4x4x4 rank {rank}, {LABELS.get(name, name)}",
                    "median": medians[name],
                    "least": min(residuals),
                    "mean": statistics.fmean(residuals),
                    "deviation": statistics.stdev(residuals),
                    "baseline": "random, median",
                    "ratio": medians[name] / medians["random"],
                    "coefficient": statistics.median(pair[1] for pair in found),
                    "seeds": SEEDS,
                }
            )
    return rows


def one(rank: int, name: str, seed: int) -> tuple[float, float]:
    """(residual, largest coefficient) from one random start."""
    T = product_tensor(*FORM)
    rng = np.random.default_rng([seed, rank])
    factors = starts.by_kind(FORM, rank, RIDGE, rng)[name]()
    assert factors is not None
    factors = alternate(T, thinned(T, factors, rank), RIDGE, SWEEPS)
    factors = balance(polish(T, factors, RIDGE, STEPS))
    return residual(T, factors), largest_coefficient(factors)


def thinned(T: Array, factors: Factors, rank: int) -> Factors:
    """Drops terms until `rank` are left, each time the one whose loss W compensates best."""
    U, V, W = factors
    while len(U) > rank:
        gram = (U @ U.T) * (V @ V.T)
        gram[np.diag_indices_from(gram)] += RIDGE
        inverse = np.linalg.inv(gram)
        best = inverse @ np.einsum("la,lb,abc->lc", U, V, T, optimize=True)
        least = int(((best**2).sum(1) / np.diag(inverse)).argmin())
        U, V, W = (np.delete(f, least, axis=0) for f in (U, V, W))
    return U, V, W
