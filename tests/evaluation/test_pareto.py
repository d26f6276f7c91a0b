"""Fronts and hypervolume against their definitions by brute force."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

import basis_search as bs
from basis_search.evaluation.pareto import dominates, hypervolume
from basis_search.families.protocol import Cost

pytestmark = pytest.mark.fast
Make = Callable[..., bs.Evaluation]


def some(make: Make, count: int, seed: int) -> list[bs.Evaluation]:
    rng = random.Random(seed)
    return [
        make(
            "a",
            "lowrank",
            {"rank": i + 1},
            error=rng.randint(1, 6) / 6,
            latency_ratio=rng.randint(1, 6) / 6,
            cost=Cost(f := 10**6 * rng.randint(1, 6), f, 0, 1, 1),
            failure="it failed" if rng.random() < 0.1 else None,
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_the_front_holds_the_evaluations_that_none_dominates(evaluation: Make, seed: int) -> None:
    everything = some(evaluation, 40, seed)
    front = bs.ParetoFront.of(everything)
    sound = [e for e in everything if e.failure is None]
    expected = {e.objectives for e in sound if not any(dominates(other, e) for other in sound)}
    assert {e.objectives for e in front.evaluations} == expected
    assert len(front) == len(expected)
    one_by_one = bs.ParetoFront()
    for e in everything:
        one_by_one = one_by_one.add(e)
    halves = bs.ParetoFront.of(everything[:20]).merge(bs.ParetoFront.of(everything[20:]))
    assert {e.objectives for e in one_by_one.evaluations} == {e.objectives for e in halves.evaluations} == expected


def test_hypervolume_of_boxes_counted_cell_by_cell() -> None:
    rng = random.Random(0)
    points = [tuple(rng.randint(0, 7) for _ in range(3)) for _ in range(12)]
    cells = {(x, y, z) for a, b, c in points for x in range(a, 6) for y in range(b, 7) for z in range(c, 8)}
    assert hypervolume(points, (6, 7, 8)) == len(cells)
    assert hypervolume([], (1.0, 1.0)) == 0
