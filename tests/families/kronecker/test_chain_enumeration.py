"""Chains as paths of a DAG, enumeration by cost, fusion by dynamic programming, choice within a budget."""

from __future__ import annotations

import itertools
import math

import networkx
import pytest
import torch

from basis_search.errors import BadInput
from basis_search.families import kronecker
from basis_search.families.kronecker import Chains, KroneckerChain, KroneckerPattern
from basis_search.families.kronecker.chain_enumeration import END, divisors

pytestmark = pytest.mark.fast


def every_chain(rows: int, columns: int, most: int, ranks: tuple[int, ...], full: bool) -> set[KroneckerChain]:
    """By definition: all chainable and irredundant tuples of patterns of the right sides."""
    limit = max(rows, columns) * max(ranks)

    def patterns(height: int) -> list[KroneckerPattern]:
        return [
            KroneckerPattern(a, height // a // d, c, d)
            for a in divisors(height)
            for d in divisors(height // a)
            for c in range(1, limit // a // d + 1)
        ]

    found: set[KroneckerChain] = set()
    waiting: list[tuple[KroneckerPattern, ...]] = [(p,) for p in patterns(rows)]
    while waiting:
        chain = waiting.pop()
        if chain[-1].columns == columns:
            found.add(KroneckerChain(chain))
        if len(chain) < most:
            waiting += [
                (*chain, p)
                for p in patterns(chain[-1].columns)
                if chain[-1].mismatch(p) is None
                and chain[-1].rank_with(p) in ranks
                and chain[-1].rank_with(p) < min(chain[-1].b, p.c)
            ]
    return {c for c in found if not full or (c.patterns[0].a == 1 and c.patterns[-1].d == 1)}


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize(("rows", "columns"), [(4, 6), (6, 4), (8, 8), (5, 7), (2, 12)])
def test_enumeration_is_complete_and_in_order(rows: int, columns: int, full: bool) -> None:
    chains = Chains(rows, columns, max_factors=3, ranks=(1, 2), full=full)
    found = list(chains.cheapest())
    assert len(found) == len(set(found))
    assert set(found) == every_chain(rows, columns, 3, (1, 2), full)
    assert [c.nnz for c in found] == sorted(c.nnz for c in found)


@pytest.mark.parametrize(("rows", "columns"), [(8, 12), (6, 10), (16, 16)])
def test_chains_are_the_paths_of_a_dag(rows: int, columns: int) -> None:
    chains = Chains(rows, columns, max_factors=4, ranks=(1, 2, 3), full=False)
    graph = chains.graph()
    assert networkx.is_directed_acyclic_graph(graph)
    paths = set()
    for path in networkx.all_simple_paths(graph, "start", END, cutoff=5):
        edges = itertools.pairwise(path[1:])
        chain = KroneckerChain(tuple(graph.edges[edge]["factor"] for edge in edges))
        if chain.redundant() is None:
            paths.add(chain)
            assert chain.nnz == sum(graph.edges[edge]["nnz"] for edge in itertools.pairwise(path[1:]))
    assert paths == set(chains.cheapest())


def test_all_kinds_of_chain_are_enumerated() -> None:
    every = list(Chains(12, 20, full=False, ranks=(1, 2, 3)).cheapest())
    patterns = [p for chain in every for p in chain]
    assert any(c.patterns[0].a > 1 for c in every)
    assert any(c.patterns[-1].d > 1 for c in every)
    assert any(p.b != p.c for p in patterns)
    assert any(3 in c.ranks for c in every)
    assert KroneckerChain.monarch(12, 20, 3, 5, 2) in every


@pytest.mark.slow
def test_the_cheapest_chains_of_a_large_layer_come_fast() -> None:
    chains = kronecker.cheapest_chains(4096, 11008, 100, max_density=0.25)
    assert len(set(chains)) == 100
    assert all(c.shape == (4096, 11008) and c.density <= 0.25 and c.redundant() is None for c in chains)
    longest = Chains(4096, 11008, max_factors=2).cheapest()
    for known in (chains[0], *itertools.islice(longest, 20)):
        assert known.nnz >= chains[0].nnz
    assert Chains(4096, 4096, ranks=(1,)).cheapest().__next__().product == KroneckerPattern(1, 4096, 4096, 1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: kronecker.cheapest_chains(2, 2, max_density=0.9), "2 x 2 has no chain.*its only chain is dense"),
        (lambda: kronecker.cheapest_chains(1, 64), "only chain is dense"),
        (lambda: kronecker.cheapest_chains(8, 8, max_density=0), "max_density is 0"),
        (lambda: Chains(0, 4), "rows is 0"),
        (lambda: Chains(4, 4, ranks=()), "ranks is empty"),
        (lambda: Chains(4, 4, ranks=(1, 0)), "a rank is 0"),
        (lambda: Chains(4, 4, max_factors=0), "max_factors is 0"),
    ],
)
def test_bad_limits_raise_bad_input(call, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadInput, match=words):
        call()


def test_primes_have_only_low_rank_chains() -> None:
    for chain in kronecker.cheapest_chains(17, 19, 30):
        assert all(p.a == p.d == 1 for p in chain)


def test_best_fusion_is_the_best_of_all_groupings() -> None:
    chain = KroneckerChain.dyadic(64)

    def cost(pattern: KroneckerPattern) -> float:  # a constant per pass plus the stored values
        return 300 + pattern.nnz + 7 * math.sin(pattern.nnz)

    groups, value = kronecker.best_fusion(chain, cost)

    def groupings(n: int):  # type: ignore[no-untyped-def]
        if n == 0:
            yield ()
        for first in range(1, n + 1):
            for rest in groupings(n - first):
                yield (first, *rest)

    prices = {g: sum(cost(p) for p in chain.fuse(g)) for g in groupings(6)}
    assert math.isclose(value, min(prices.values()))
    assert math.isclose(prices[groups], value)
    assert kronecker.best_fusion(chain, lambda p: 1.0)[0] == (6,)
    assert kronecker.best_fusion(chain, lambda p: float(p.nnz))[1] == chain.nnz


@pytest.mark.slow
def test_the_choice_is_the_least_error_within_the_budget() -> None:
    torch.manual_seed(0)
    planted = KroneckerChain.monarch(24, 24, 4, 6)
    factors = [torch.randn(p.storage).double() for p in planted]
    matrix = kronecker.blocks.dense(kronecker.blocks.fuse_all(factors)) + 0.01 * torch.randn(24, 24)
    chains = [*kronecker.cheapest_chains(24, 24, 40, max_density=0.6, max_factors=3), planted]
    nnz = lambda p: float(p.nnz)  # noqa: E731
    budget = float(planted.nnz)
    choice = kronecker.choose_chain(matrix, chains, budget, nnz, sweeps=3)
    errors = {c: kronecker.factorize(matrix, c, sweeps=3).error for c in chains if c.nnz <= budget}
    assert choice.factorization.error == pytest.approx(min(errors.values()))
    assert choice.chain == planted
    assert choice.cost <= budget
    assert choice.considered <= len(errors)  # some are equal once fused
    assert choice.factorized < choice.considered  # the lower bound excludes some
    with pytest.raises(BadInput, match=r"no chain is within the budget of 1: the cheapest, \(1,24,1,1\)"):
        kronecker.choose_chain(matrix, chains, 1.0, nnz)
    with pytest.raises(BadInput, match="no chain was given"):
        kronecker.choose_chain(matrix, [], 1.0, nnz)


def test_measured_costs_are_positive_and_cached() -> None:
    costs = kronecker.MeasuredCosts(batch=8, rounds=3)
    pattern = KroneckerPattern(2, 8, 8, 4)
    assert costs(pattern) > 0
    assert costs(pattern) == costs(pattern)
    assert costs.dense(64, 64) > 0
    with pytest.raises(BadInput, match="batch is 0"):
        kronecker.MeasuredCosts(batch=0)


def test_monarch_chains_use_most_of_the_density() -> None:
    found = kronecker.monarch_chains(48, 60, 0.3)
    assert len(found) > 5
    for chain in found:
        assert chain.shape == (48, 60)
        assert chain.redundant() is None
        assert 0.2 - 1e-9 < chain.density <= 0.3
    assert kronecker.monarch_chains(7, 11, 0.5) == []
