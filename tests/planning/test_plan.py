"""plan(): against brute force, and what it refuses."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Callable

import pytest

import basis_search as bs
from basis_search.families.protocol import Cost
from basis_search.planning.budget import budgets_of, max_latency_of
from basis_search.planning.plan import latency_cost, plan_within
from basis_search.planning.uniform import uniform_assignments

pytestmark = pytest.mark.fast
Make = Callable[..., bs.Evaluation]


def fronts_of(make: Make, layers: int, candidates: int, seed: int) -> dict[str, bs.ParetoFront]:
    rng = random.Random(seed)
    fronts = {}
    for number in range(layers):
        name, dense, sensitivity = f"layer{number}", rng.randint(10**6, 10**8), rng.uniform(0.1, 10)
        evaluations = [
            make(
                name,
                "lowrank",
                {"rank": rank},
                cost=Cost(flops := rng.randint(dense // 20, dense), flops, 0, 1, flops // 100),
                dense_cost=Cost(dense, dense, 0, 1, dense // 100),
                error=rng.random() ** 3,
                latency=(ratio := rng.uniform(0.1, 1.2)) * 1e-3,
                latency_ratio=ratio,
                sensitivity=sensitivity,
            )
            for rank in range(1, candidates + 1)
        ]
        fronts[name] = bs.ParetoFront.of(evaluations)
    return fronts


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("quantity", ["flops", "latency", "parameters"])
def test_the_plan_is_the_best_of_all_assignments(evaluation: Make, seed: int, quantity: str) -> None:
    fronts = fronts_of(evaluation, layers=4, candidates=6, seed=seed)
    plan = bs.plan(fronts, {quantity: 0.5})
    best = float("inf")
    for choice in itertools.product(*(front.evaluations for front in fronts.values())):
        named = dict(zip(fronts, choice, strict=True))
        other = bs.Plan({}, named, plan.dense_latency)
        if other.ratios[quantity] <= 0.5:
            best = min(best, other.damage)
    assert plan.ratios[quantity] <= 0.5 + 1e-9
    assert plan.damage == pytest.approx(best, rel=1e-6)


def test_of_plans_that_tie_the_fastest_is_taken(evaluation: Make) -> None:
    cost, dense = Cost(900, 900, 0, 1, 9), Cost(1000, 1000, 0, 1, 10)

    def front(layer: str) -> bs.ParetoFront:
        exact = evaluation(layer, "stl", {"tile": 2, "rank": 7, "basis": "strassen"}, cost=cost, dense_cost=dense,
                           error=1e-13, latency=1.6e-3, latency_ratio=1.6)  # fmt: skip
        plain = evaluation(layer, cost=dense, dense_cost=dense, error=0.0, latency=1e-3, latency_ratio=1.0)
        coarse = evaluation(layer, "lowrank", {"rank": 4}, cost=cost, dense_cost=dense, error=0.3,
                            latency=0.5e-3, latency_ratio=0.5)  # fmt: skip
        return bs.ParetoFront.of([exact, plain, coarse])

    fronts = {name: front(name) for name in ("a", "b", "c")}
    plan = bs.plan(
        fronts, {"flops": 0.97, "latency": math.inf}
    )  # one exact scheme saves enough, two more would only be slower
    assert sorted(e.candidate.family for e in plan.choices.values()) == ["dense", "dense", "stl"]
    assert plan.damage < 1e-12
    tight = bs.plan(fronts, {"flops": 0.9, "latency": math.inf})  # all three are needed, however slow
    assert {e.candidate.family for e in tight.choices.values()} == {"stl"}


def test_two_budgets_at_once_are_both_met(evaluation: Make) -> None:
    fronts = fronts_of(evaluation, layers=5, candidates=12, seed=3)
    plan = bs.plan(fronts, {"flops": 0.6, "latency": 0.7})
    assert plan.ratios["flops"] <= 0.6 + 1e-9
    assert plan.ratios["latency"] <= 0.7 + 1e-9
    assert plan.name == "flops-0.60-latency-0.70"


def slow_savings(make: Make, layers: int = 3) -> dict[str, list[bs.Evaluation]]:
    """Tables in which few FLOPs are precise and slow (1.4 x dense) or coarse and fast; dense is timed with noise."""
    dense = Cost(1000, 1000, 0, 1, 10)

    def table(name: str) -> list[bs.Evaluation]:
        return [
            make(name, cost=dense, dense_cost=dense, error=0.0, latency=1.03e-3, latency_ratio=1.03),
            make(name, "kronecker", {"chain": "(1,8,2,2)*(2,2,6,1)"}, cost=Cost(500, 500, 0, 1, 5), dense_cost=dense,
                 error=0.01, latency=1.4e-3, latency_ratio=1.4),
            make(name, "lowrank", {"rank": 4}, cost=Cost(500, 500, 0, 1, 5), dense_cost=dense, error=0.05,
                 latency=0.6e-3, latency_ratio=0.6),
        ]  # fmt: skip

    return {f"layer{number}": table(f"layer{number}") for number in range(layers)}


@pytest.mark.parametrize("quantity", ["flops", "parameters"])
@pytest.mark.parametrize("groups", [(), (("layer0", "layer1"),)])
def test_a_plan_is_no_slower_than_dense_unless_its_budget_names_a_latency(
    evaluation: Make, quantity: str, groups: tuple[tuple[str, ...], ...]
) -> None:
    tables = slow_savings(evaluation)
    fronts = {name: bs.ParetoFront.of(es) for name, es in tables.items()}
    for given in (tables, fronts):
        free, told, limited = bs.plans(
            given, [{quantity: 0.5, "latency": math.inf}, {quantity: 0.5, "latency": 1.2}, {quantity: 0.5}],
            groups=groups,
        )  # fmt: skip
        assert free.ratios["latency"] == pytest.approx(1.4)
        assert free.damage == pytest.approx(0.03)
        assert 1 < told.ratios["latency"] <= 1.2
        assert limited.ratios["latency"] <= 1
        families = Counter(e.candidate.family for e in limited.choices.values())
        assert families == {"kronecker": 1, "lowrank": 2}
        assert limited.damage == pytest.approx(0.11)
        assert limited.name == f"{quantity}-0.50"
        assert limited.budget == {quantity: 0.5}


def test_a_plan_says_what_keeping_the_latency_costs(evaluation: Make) -> None:
    tables = slow_savings(evaluation)
    free, limited, cheap = bs.plans(tables, [{"flops": 0.5, "latency": math.inf}, {"flops": 0.5}, {"flops": 1.0}])
    assert latency_cost(limited) == (
        "flops-0.50: keeping latency <= 1 costs damage 0.11 instead of 0.03, which would take latency 1.40"
    )
    document = json.loads(json.dumps(limited.to_json(), allow_nan=False))
    assert document["latency_limit"] == {
        "limit": 1.0, "damage_without": pytest.approx(free.damage), "latency_without": pytest.approx(1.4),
    }  # fmt: skip
    assert bs.Plan.from_json(document) == limited
    for plan in (free, cheap):
        assert latency_cost(plan) == ""
        document = json.loads(json.dumps(plan.to_json(), allow_nan=False))
        assert "latency_limit" not in document
        assert bs.Plan.from_json(document) == plan
    assert free.name == "flops-0.50-latency-inf"


def test_a_layer_left_dense_takes_latency_1_whatever_the_clock_measured(evaluation: Make) -> None:
    plan = bs.plan(slow_savings(evaluation), {"flops": 1.0})
    assert {e.candidate.family for e in plan.choices.values()} == {"dense"}
    assert plan.ratios["latency"] == 1


def test_a_budget_that_only_slow_plans_meet_names_the_latency_to_allow(evaluation: Make) -> None:
    tables = {name: [e for e in es if e.candidate.family != "lowrank"] for name, es in slow_savings(evaluation).items()}
    with pytest.raises(bs.BadInput) as refusal:
        bs.plan(tables, {"flops": 0.7})
    sentence = str(refusal.value)
    assert sentence == (
        "every plan within flops 0.7 is slower than dense (the fastest takes 1.27 of its time); raise max_latency (or "
        "add latency=1.27 to the budget) to allow it"
    )
    with pytest.raises(bs.BadInput, match=r"^every plan within flops 0\.7 exceeds latency 1\.2 of dense"):
        plan_within(tables, {"flops": 0.7}, 1.2)
    assert plan_within(tables, {"flops": 0.7}, 1.27).budget == {"flops": 0.7}
    assert bs.plan(tables, {"flops": 0.7, "latency": 1.27}).ratios["latency"] == pytest.approx(1.2667, abs=1e-4)


def test_latencies_of_several_devices_are_not_limited(evaluation: Make) -> None:
    tables = slow_savings(evaluation, layers=2)
    there = dataclasses.replace(tables["layer1"][0].device, name="another")
    tables["layer1"] = [dataclasses.replace(e, device=there) for e in tables["layer1"]]
    assert bs.plan(tables, {"flops": 0.5}).damage == pytest.approx(0.02)
    with pytest.raises(bs.BadInput, match="measured on 2 different devices"):
        bs.plan(tables, {"flops": 0.5, "latency": 2.0})


def test_every_fraction_is_a_budget_and_a_latency_above_1_is_one_too() -> None:
    assert budgets_of({"flops": [0.7], "latency": [1.5, 0.9, 2.0], "parameters": []}) == [
        {"flops": 0.7}, {"latency": 1.5}, {"latency": 0.9}, {"latency": 2.0},
    ]  # fmt: skip
    with pytest.raises(bs.BadInput, match="did you mean 'flops'"):
        budgets_of({"flop": []})


def test_another_largest_latency_changes_the_plan_and_not_its_name(evaluation: Make) -> None:
    tables = slow_savings(evaluation)
    limited, looser, free = (plan_within(tables, {"flops": 0.5}, most) for most in (1.0, 1.2, math.inf))
    assert limited == bs.plan(tables, {"flops": 0.5})
    assert {plan.name for plan in (limited, looser, free)} == {"flops-0.50"}
    assert looser.choices == bs.plan(tables, {"flops": 0.5, "latency": 1.2}).choices
    assert bs.Plan.from_json(json.loads(json.dumps(looser.to_json()))) == looser
    assert looser.to_json()["latency_limit"]["limit"] == 1.2
    assert latency_cost(looser).startswith("flops-0.50: keeping latency <= 1.2 costs damage 0.07 instead of 0.03")
    assert free.choices == bs.plan(tables, {"flops": 0.5, "latency": math.inf}).choices
    named = plan_within(tables, {"flops": 0.5, "latency": math.inf}, 1.0)
    assert named == bs.plan(tables, {"flops": 0.5, "latency": math.inf})


def test_the_largest_latency_of_a_run_is_in_its_config() -> None:
    configs: list[dict[str, float | None]] = [{}, {"max_latency": None}, {"max_latency": 2}]
    assert [max_latency_of(config) for config in configs] == [1.0, math.inf, 2.0]
    with pytest.raises(bs.BadInput, match="max_latency is 'two' in the run's config"):
        max_latency_of({"max_latency": "two"})


def test_groups_share_a_spec_and_the_plan_is_the_best_that_does(evaluation: Make) -> None:
    fronts = fronts_of(evaluation, layers=4, candidates=6, seed=2)
    tables = {name: list(front.evaluations) for name, front in fronts.items()}
    rng = random.Random(1)
    for name in tables:  # whole tables, dominated candidates among them
        tables[name] = [
            evaluation(name, "lowrank", {"rank": r}, error=rng.random(), latency=1e-3 * r, latency_ratio=0.1 * r,
                       cost=Cost(10 * r, 10 * r, 0, 1, r), dense_cost=Cost(80, 80, 0, 1, 9))
            for r in range(1, 7)
        ]  # fmt: skip
    del tables["layer3"][2:4]
    together = ("layer0", "layer1", "layer3")
    plan = bs.plan(tables, {"flops": 0.4}, groups=[together])
    best = float("inf")
    for choice in itertools.product(*tables.values()):
        named = dict(zip(tables, choice, strict=True))
        other = bs.Plan({}, named, plan.dense_latency)
        if other.ratios["flops"] <= 0.4 and len({named[n].candidate.spec for n in together}) == 1:
            best = min(best, other.damage)
    assert len({plan.choices[n].candidate.spec for n in together}) == 1
    assert plan.ratios["flops"] <= 0.4 + 1e-9
    assert plan.damage == pytest.approx(best)
    assert plan.damage > bs.plan(tables, {"flops": 0.4}).damage
    assert list(plan.choices) == list(tables)


def test_a_pattern_groups_by_what_it_captures(evaluation: Make) -> None:
    names = [f"blocks.{b}.{part}" for b in (0, 1) for part in ("query", "key", "value", "output")]
    tables = {
        name: [evaluation(name, "lowrank", {"rank": r}, error=1 / r, cost=Cost(r, r, 0, 1, r)) for r in (1, 2, 3)]
        for name in names
    }
    for name, rank in (("blocks.0.key", 0), ("blocks.1.query", 2)):
        del tables[name][rank]
    plan = bs.plan(tables, {"flops": 1.0}, groups=[r"re:(.*)\.(?:query|key|value)"])
    ranks = {name: e.candidate.spec.rank for name, e in plan.choices.items()}
    assert ranks == {n: 2 if n in names[4:7] else 3 for n in names}
    for groups, sentence in (
        (["re:(.*"], "no regular expression"),
        (["re:none"], "no layer matches the group"),
        ([["blocks.0.query", "blocks.0.kay"]], "did you mean 'blocks.0.key'"),
        ([names[:2], names[1:3]], "in two groups"),
    ):
        with pytest.raises(bs.BadInput, match=sentence):
            bs.plan(tables, {"flops": 1.0}, groups=groups)
    del tables[names[0]][1:]
    del tables[names[1]][:1]
    with pytest.raises(bs.BadInput, match="none was evaluated on all of them"):
        bs.plan(tables, {"flops": 1.0}, groups=[names[:2]])


def test_a_layer_that_is_called_twice_costs_twice_but_is_stored_once(evaluation: Make) -> None:
    cost, dense = Cost(40, 40, 0, 1, 5), Cost(80, 80, 0, 1, 9)
    tables = [
        [evaluation(name, "lowrank", {"rank": 1}, cost=cost, dense_cost=dense, calls=calls, latency=1.0,
                    latency_ratio=0.5, energy=3.0, dense_energy=4.0)]
        for name, calls in (("once", 1), ("thrice", 3))
    ]  # fmt: skip
    plan = bs.plan({"a": tables[0], "b": tables[1]}, {"energy": 0.8})
    assert plan.totals == {"flops": 80 * 4, "latency": 4.0, "parameters": 10, "energy": 12.0}
    assert plan.dense == {"flops": 160 * 4, "latency": 8.0, "parameters": 18, "energy": 16.0}
    with pytest.raises(bs.BadInput, match=r"nearest that the fronts reach is energy 0\.7500"):
        bs.plan({"a": tables[0], "b": tables[1]}, {"energy": 0.7})
    silent = [evaluation("silent", energy=None)]
    with pytest.raises(bs.BadInput, match="does not report it"):
        bs.plan({"a": tables[0], "c": silent}, {"energy": 0.9})
    assert "energy" not in bs.plan({"a": tables[0], "c": silent}, {"flops": 1.0}).ratios


def test_many_budgets_at_once_are_the_plans_of_each(evaluation: Make) -> None:
    fronts = fronts_of(evaluation, layers=6, candidates=10, seed=4)
    budgets = [{q: f} for q in ("flops", "latency", "parameters") for f in (0.4, 0.6, 0.8)]
    together = bs.plans(fronts, budgets)
    assert [p.budget for p in together] == budgets
    assert together == [bs.plan(fronts, budget) for budget in budgets]


def test_a_plan_survives_json(evaluation: Make) -> None:
    plan = bs.plan(fronts_of(evaluation, layers=3, candidates=5, seed=0), {"flops": 0.5})
    again = bs.Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan
    with pytest.raises(bs.BadInput, match="no plan of basis_search"):
        bs.Plan.from_json({"budget": {}})


def test_a_budget_that_nothing_meets_names_the_nearest(evaluation: Make) -> None:
    fronts = fronts_of(evaluation, layers=2, candidates=5, seed=1)
    least = sum(min(e.cost.flops for e in f.evaluations) for f in fronts.values())
    dense = sum(f.evaluations[0].dense_cost.flops for f in fronts.values())
    with pytest.raises(bs.BadInput) as refusal:
        bs.plan(fronts, {"flops": 0.001})
    assert f"nearest that the fronts reach is flops {least / dense:.4f}" in str(refusal.value)


@pytest.mark.parametrize(
    ("budget", "sentence"),
    [
        ({}, "the budget is empty"),
        ({"flop": 0.5}, "did you mean 'flops'"),
        ({"flops": 0.0}, "not a fraction above 0"),
        ({"flops": float("nan")}, "not a fraction above 0"),
        ({"flops": math.inf}, "not a fraction above 0"),
        ({"latency": math.inf}, "not a fraction above 0"),
    ],
)
def test_bad_budgets_are_refused(evaluation: Make, budget: dict[str, float], sentence: str) -> None:
    with pytest.raises(bs.BadInput, match=sentence):
        bs.plan(fronts_of(evaluation, 1, 3, 0), budget)


def test_bad_fronts_are_refused(evaluation: Make) -> None:
    front = bs.ParetoFront((evaluation("a"),))
    with pytest.raises(bs.BadInput, match="no front was given"):
        bs.plan({}, {"flops": 1.0})
    with pytest.raises(bs.BadInput, match="a front is empty"):
        bs.plan([bs.ParetoFront()], {"flops": 1.0})
    with pytest.raises(bs.BadInput, match="two fronts are of the layer 'a'"):
        bs.plan([front, front], {"flops": 1.0})


def test_differences_far_below_the_largest_damage_decide_too(evaluation: Make) -> None:
    """The solver takes 1e-6 of its objective for nothing; a plan must not."""
    rng = random.Random(0)
    tables = {
        name: [
            evaluation(name, "lowrank", {"rank": r}, error=1e-8 * rng.random() / r, latency=r, latency_ratio=0.12 * r)
            for r in range(1, 8)
        ]
        + [evaluation(name, "pq", {"codebooks": 2}, error=5.0, latency=0.1, latency_ratio=0.01)]
        for name in ("a", "b", "c", "d")
    }
    plan = bs.plan(tables, {"latency": 0.4})
    best = min(
        sum(e.error for e in choice)
        for choice in itertools.product(*tables.values())
        if sum(e.latency_ratio for e in choice) <= 0.4 * 4
    )
    assert plan.damage == pytest.approx(best, rel=1e-5)


def test_damages_of_output_metrics_add_up_in_place_of_sensitivity_times_error(evaluation: Make) -> None:
    def felt(name: str, rank: int, flops: int, damage: float) -> bs.Evaluation:
        cost, dense = Cost(flops, 0, 0, 1, 1), Cost(100, 0, 0, 1, 1)
        return evaluation(
            name, "lowrank", {"rank": rank}, cost=cost, dense_cost=dense, error=1 / damage, weighted_error=damage / 10,
            damage=damage, calls=3,
        )  # fmt: skip

    fronts = {name: [felt(name, 1, 20, high), felt(name, 2, 80, low)] for name, high, low in (("a", 9, 1), ("b", 5, 2))}
    plan = bs.plan(fronts, {"flops": 0.5, "latency": math.inf})
    assert [e.candidate.spec.rank for e in plan.choices.values()] == [2, 1]  # by plain errors it would be [1, 2]
    assert plan.damage == 6  # of all calls together: the metric is summed over them
    with pytest.raises(bs.BadInput, match=r"layers b were evaluated without an output metric, but a with one.*output="):
        bs.plan(fronts | {"b": [dataclasses.replace(e, damage=None) for e in fronts["b"]]}, {"flops": 0.5})


@pytest.mark.slow
def test_no_uniform_assignment_has_less_predicted_damage_than_the_plan(evaluation: Make) -> None:
    labels = set()
    for seed in range(4):
        fronts, rng = fronts_of(evaluation, layers=5, candidates=6, seed=seed), random.Random(seed)
        table: dict[str, list[bs.Evaluation]] = {}
        for name, front in fronts.items():
            first = front.evaluations[0]
            alike = {"cost": first.dense_cost, "dense_cost": first.dense_cost, "sensitivity": first.sensitivity}
            dense = evaluation(name, "dense", latency_ratio=1.0, **alike)
            int8 = evaluation(name, "int8", error=rng.random() / 50, latency_ratio=0.4, latency=4e-4, **alike)
            table[name] = [*front.evaluations, dense, int8]
        for budget in ({"flops": 0.7}, {"latency": 0.5}, {"latency": 0.7}, {"latency": 0.9}):
            plan = bs.plan(table, budget)
            for other in uniform_assignments(plan):
                labels.add(other.label)
                assert other.plan.damage >= plan.damage * (1 - 1e-9)
                assert all(other.plan.ratios[q] <= limit * (1 + 1e-9) for q, limit in budget.items())
                assert other.plan.choices != plan.choices
    assert {"dense but for lowrank", "dense but for int8", "int8 (reduce_range True) everywhere"} <= labels
    assert uniform_assignments(dataclasses.replace(plan, table=None)) == []
