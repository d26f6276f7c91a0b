"""Predicted time of a factor: a linear model fitted to measurements, t ~ sum_i theta_i f_i.

Features: a constant per call, stored values (weights are read once), inputs and outputs (batch (acd + abd)),
multiplications (batch . nnz), the same over b and over c (few outputs or short sums fill registers badly), and the
share of a vector of 16 that b.d leaves empty. Fitted by non-negative least squares on relative errors.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from basis_search.errors import BadInput
from basis_search.families.kronecker.patterns import KroneckerChain, KroneckerPattern

FEATURES = ("call", "weights", "values", "products", "products / b", "products / c", "narrow")


def features(pattern: KroneckerPattern, batch: int) -> list[float]:
    """The features of one factor, in the order of FEATURES."""
    products = float(batch * pattern.nnz)
    return [
        1.0,
        float(pattern.nnz),
        float(batch * (pattern.rows + pattern.columns)),
        products,
        products / pattern.b,
        products / pattern.c,
        products * max(0.0, 1 - min(16, pattern.b * pattern.d) / 16),
    ]


@dataclass(frozen=True)
class CostModel:
    """`seconds` per unit of each of FEATURES; `error`: median relative error on measurements not used in the fit."""

    seconds: tuple[float, ...]
    error: float

    def factor(self, pattern: KroneckerPattern, batch: int) -> float:
        """Predicted seconds of one factor."""
        return float(np.dot(self.seconds, features(pattern, batch)))

    def chain(self, chain: KroneckerChain, batch: int) -> float:
        """Predicted seconds of a chain in one call."""
        return sum(self.factor(pattern, batch) for pattern in chain) - (len(chain) - 1) * self.seconds[0]

    def dense_ratio(self, chain: KroneckerChain, rows: int, columns: int, batch: int) -> float:
        """Predicted seconds of a chain over those of a dense layer [rows, columns], which is a factor of one block."""
        return self.chain(chain, batch) / self.factor(KroneckerPattern(1, rows, columns, 1), batch)


REFERENCE_CPU = CostModel((4.27e-6, 3.121e-11, 6.541e-11, 1.832e-11, 1.321e-11, 0.0, 1.968e-11), 0.108)
"""One AMD EPYC core, AVX-512, float32, as printed by `basis-search bench suite=kronecker part=costs`. Ratios of its
predictions are a first guess on other CPUs; a search uses them only to skip chains that are far too slow."""


def fit_costs(measured: Mapping[tuple[KroneckerPattern, int], float], folds: int = 5) -> CostModel:
    """Fit a model to measured seconds by (pattern, batch); its error is cross-validated over `folds`.

    Raises:
        BadInput: fewer measurements than twice the features, or a time that is not positive.
    """
    if len(measured) < 2 * len(FEATURES):
        raise BadInput(f"{len(measured)} measurements were given, but at least {2 * len(FEATURES)} are needed")
    if min(measured.values()) <= 0:
        raise BadInput(f"a measured time is {min(measured.values())}, but seconds above 0 are needed")
    keys = sorted(measured, key=lambda key: (key[0].storage, key[1]))
    order = np.random.default_rng(0).permutation(len(keys))
    errors: list[float] = []
    for fold in range(folds):
        held = set(order[fold::folds].tolist())
        theta = _solve([keys[i] for i in range(len(keys)) if i not in held], measured)
        for i in held:
            pattern, batch = keys[i]
            predicted = float(np.dot(theta, features(pattern, batch)))
            errors.append(abs(predicted / measured[keys[i]] - 1))
    return CostModel(_solve(keys, measured), statistics.median(errors))


def _solve(
    keys: Sequence[tuple[KroneckerPattern, int]], measured: Mapping[tuple[KroneckerPattern, int], float]
) -> tuple[float, ...]:
    from scipy.optimize import nnls

    rows = np.array([features(*key) for key in keys])
    times = np.array([measured[key] for key in keys])
    relative = rows / times[:, None]
    scale = np.linalg.norm(relative, axis=0)
    theta, _ = nnls(relative / scale, np.ones(len(keys)))
    return tuple(float(value) for value in theta / scale)
