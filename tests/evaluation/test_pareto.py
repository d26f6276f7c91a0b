"""Fronts and hypervolume against their definitions by brute force."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

import basis_search as bs
from basis_search.evaluation.constraints import kept
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


def test_the_clock_that_counts_decides(evaluation: Make) -> None:
    """Objectives, limits and plans of one pair of measurements by either clock; a record of before counts as eager."""
    both = evaluation("a", "lowrank", {"rank": 1}, latency=2e-5, latency_ratio=2.0)
    both = replace(both, latency_graph=4e-6, latency_graph_ratio=0.5, latency_graph_spread=0.01, timed="graph")
    assert bs.Evaluation.from_json(both.to_json()) == both
    by_eager = both.timed_by("eager")
    assert (both.objectives[2], both.timed_latency, both.timed_spread) == (0.5, 4e-6, 0.01)
    assert (by_eager.objectives[2], by_eager.timed_latency) == (2.0, 2e-5)
    assert both.host_share == pytest.approx(0.8)
    assert kept({"latency": 1.0}, both)
    assert not kept({"latency": 1.0}, by_eager)
    assert bs.plan({"a": [both]}, {"latency": 0.6}).dense_latency["a"] == pytest.approx(8e-6)
    with pytest.raises(bs.BadInput, match="latency 2"):
        bs.plan({"a": [by_eager]}, {"latency": 0.6})
    data = by_eager.to_json()
    for name in ("latency_graph", "latency_graph_ratio", "latency_graph_spread", "kernels_graph", "timed"):
        del data[name]
    old = bs.Evaluation.from_json(data)
    assert (old.timed, old.host_share, old.timed_by("graph").timed) == ("eager", None, "eager")
    with pytest.raises(bs.BadInput, match="timed is 'graph'"):
        bs.Evaluation.from_json(data | {"timed": "graph"})
