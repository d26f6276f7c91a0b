"""The time model: a planted law is recovered, errors are cross-validated, slow chains are not tried."""

from __future__ import annotations

import math

import numpy as np
import pytest

from basis_search.errors import BadInput
from basis_search.families.kronecker import KroneckerChain, KroneckerPattern, Space
from basis_search.families.kronecker.space import fast_enough
from basis_search.families.kronecker.time_model import (
    FEATURES,
    REFERENCE_CPU,
    features,
    fit_costs,
)
from basis_search.layers.layer import LayerShape

pytestmark = pytest.mark.fast


def measurements(noise: float) -> dict[tuple[KroneckerPattern, int], float]:
    """Times by a known law with relative noise."""
    law = np.array([1e-5, 1e-11, 5e-11, 2e-11, 1e-11, 3e-11, 2e-11])
    draw = np.random.default_rng(0)
    patterns = [
        KroneckerPattern(a, b, c, d) for a in (1, 4, 32) for b in (2, 8, 64) for c in (2, 16, 64) for d in (1, 16)
    ]
    return {
        (p, n): float(law @ features(p, n)) * math.exp(noise * draw.standard_normal())
        for p in patterns
        for n in (1, 64, 512)
    }


def test_a_planted_law_is_recovered_and_noise_is_reported() -> None:
    exact, noisy = fit_costs(measurements(0.0)), fit_costs(measurements(0.2))
    assert exact.error < 1e-6
    assert 0.08 < noisy.error < 0.25  # the median of |exp(0.2 z) - 1| is 0.135
    assert len(exact.seconds) == len(FEATURES)
    chain = KroneckerChain.monarch(64, 64, 8, 8)
    assert math.isclose(exact.chain(chain, 64), sum(exact.factor(p, 64) for p in chain) - 1e-5, rel_tol=1e-4)


def test_too_few_or_impossible_measurements_are_refused() -> None:
    with pytest.raises(BadInput, match="3 measurements were given"):
        fit_costs(dict(list(measurements(0.0).items())[:3]))
    broken = measurements(0.0)
    broken[next(iter(broken))] = 0.0
    with pytest.raises(BadInput, match="seconds above 0"):
        fit_costs(broken)


def test_slow_chains_are_not_tried_on_a_cpu() -> None:
    layer, space = LayerShape(1024, 1024, 256), Space()
    assert fast_enough(KroneckerChain.monarch(1024, 1024, 32, 32), layer, space)
    assert REFERENCE_CPU.dense_ratio(KroneckerChain.monarch(1024, 1024, 32, 32), 1024, 1024, 256) < 0.5
    costly = KroneckerChain.of((1, 1024, 8192, 1), (1, 8192, 1024, 1))
    assert not fast_enough(costly, layer, space)
    assert fast_enough(costly, layer, Space(max_time=100))
