"""The multiple-choice knapsack against brute force: ties, amounts on a lattice, damages over 17 orders of magnitude."""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

import numpy as np
import pytest
import scipy.optimize
from numpy.typing import NDArray

from basis_search.planning.knapsack import TIE, solve

pytestmark = pytest.mark.fast
Floats = NDArray[np.float64]


def drawn(kind: str, generator: np.random.Generator, count: int) -> Floats:
    """Damages of one unit."""
    if kind == "even":
        return generator.random(count)
    if kind == "tied":
        return generator.integers(0, 4, count).astype(float)
    if kind == "wide":
        return np.asarray(10.0 ** generator.uniform(-16, 1, count))
    return generator.integers(0, 3, count) * 1e-14 + (generator.random(count) < 0.2) * 5.0  # rounding, or hopeless


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["even", *(pytest.param(k, marks=pytest.mark.slow) for k in ("tied", "wide", "rounding"))]
)
def test_the_best_of_all_assignments_within_the_limits(kind: str) -> None:
    unmet = 0
    for seed in range(60):
        g = np.random.default_rng(seed)
        units, quantities = g.integers(1, 6), g.integers(1, 4)
        counts = g.integers(1, 7, units)
        damage = [drawn(kind, g, n) for n in counts]
        lattice = kind in ("tied", "rounding")
        amounts = [(g.integers(0, 5, (n, quantities)) / 10 if lattice else g.random((n, quantities))) for n in counts]
        limits = units * (g.integers(1, 9, quantities) / 20 if lattice else g.uniform(0.1, 0.8, quantities))
        further = [g.random(n) for n in counts] if seed % 2 else None
        found = solve(damage, amounts, limits, further)

        every = np.array(list(itertools.product(*map(range, counts))))  # [assignments, units]
        sums = sum(a[every[:, u]] for u, a in enumerate(amounts))
        within = (sums <= limits + 1e-12).all(axis=1)
        assert (found is None) == (not within.any())
        if found is None:
            unmet += 1
            continue
        damages = sum(d[every[:, u]] for u, d in enumerate(damage))
        best = damages[within].min()
        got = sum(d[c] for d, c in zip(damage, found, strict=True))
        assert (sum(a[c] for a, c in zip(amounts, found, strict=True)) <= limits + 1e-11).all()
        if further is None:
            assert got <= best * (1 + 1e-6)
        else:
            assert got <= best * (1 + 1e-6) + TIE * max(d.max() for d in damage)
            costs = sum(f[every[:, u]] for u, f in enumerate(further))
            cost = sum(f[c] for f, c in zip(further, found, strict=True))
            assert cost <= costs[within & (damages <= best * (1 + 1e-12))].min() * (1 + 1e-6)
    assert unmet < 50


def test_what_only_the_solvers_tolerance_lets_in_is_left_out() -> None:
    limit = np.array([1.0])
    beyond = 1.0 + 1e-9  # HiGHS takes 1e-6 for nothing
    assert solve([np.array([0.0, 1.0])], [np.array([[beyond], [1.0]])], limit) == [1]
    two = [np.array([0.0, 1.0])] * 2
    assert sorted(solve(two, [np.array([[beyond / 2], [0.25]])] * 2, limit) or []) == [0, 1]
    assert solve(two, [np.array([[beyond], [beyond / 2]])] * 2, limit) is None


def test_what_the_solver_prints_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    milp = scipy.optimize.milp
    said = []

    def talkative(*args: Any, **kwargs: Any) -> Any:
        said.append(ctypes.CDLL(None).printf(b"HighsMipSolverData\n"))
        return milp(*args, **kwargs)

    monkeypatch.setattr(scipy.optimize, "milp", talkative)
    print("before")
    assert solve([np.array([0.0, 1.0])], [np.array([[2.0], [1.0]])], np.array([1.0])) == [1]
    print("after")
    ctypes.CDLL(None).fflush(None)
    assert said
    assert capfd.readouterr().out == "before\nafter\n"
