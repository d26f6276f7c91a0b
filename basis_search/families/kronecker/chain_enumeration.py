"""All chainable chains of an M x N matrix as paths of a DAG, enumerated from the cheapest on without building it.

A node (u, a, d) precedes a factor and fixes its a, d and u = b.d. An edge chooses the rank r to the next factor and so
fixes c: (u, a, d) -> (r.d, a', d') for a | a', d' | d has b = u / d, c = r.a' / a at nnz = u.r.a'; the last edge, to
the end, has c = N / (a.d) at nnz = u.N / d. Chainability: arXiv 2411.04506.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from basis_search.errors import BadInput
from basis_search.families.kronecker.patterns import KroneckerChain, KroneckerPattern

Node = tuple[int, int, int]
END: Node = (0, 0, 0)
"""Node at which every path ends."""
MOST_EDGES = 2_000_000


def divisors(n: int) -> list[int]:
    """All divisors, ascending."""
    small = [k for k in range(1, math.isqrt(n) + 1) if n % k == 0]
    return sorted({*small, *(n // k for k in small)})


@dataclass(frozen=True)
class Chains:
    """The chainable, irredundant chains of shape [rows, columns].

    Args:
        rows, columns: M and N.
        max_nnz: limit on stored values; none if None.
        max_factors: limit on factors; none if None.
        ranks: allowed ranks between neighbours.
        full: only chains with a_1 = 1 and d_L = 1, whose products have no zero entries by structure; otherwise all.

    Raises:
        BadInput: a side, a rank or a limit below 1.
    """

    rows: int
    columns: int
    max_nnz: int | None = None
    max_factors: int | None = None
    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    full: bool = True

    def __post_init__(self) -> None:
        for name, value in (("rows", self.rows), ("columns", self.columns), ("max_nnz", self.max_nnz),
                            ("max_factors", self.max_factors), *(("a rank", r) for r in self.ranks)):  # fmt: skip
            if value is not None and value < 1:
                raise BadInput(f"{name} is {value}, but at least 1 is needed")
        if not self.ranks:
            raise BadInput("ranks is empty, but at least one rank is needed; (1,) gives the cheapest chains")

    @cached_property
    def _starts(self) -> list[Node]:
        """Every first node (b.d, a, d)."""
        return [
            (self.rows // a, a, d)
            for a in ([1] if self.full else divisors(math.gcd(self.rows, self.columns)))
            for d in divisors(self.rows // a)
        ]

    @cached_property
    def _outer(self) -> list[int]:
        return divisors(self.columns)

    @cached_property
    def _inner(self) -> dict[int, list[int]]:
        return {d: divisors(d) for d in divisors(self.rows)}

    def _closes(self, a: int, d: int) -> bool:
        """Whether a factor with this a and d may be the last."""
        return self.columns % (a * d) == 0 and (d == 1 or not self.full)

    def successors(self, node: Node) -> Iterator[tuple[Node, KroneckerPattern]]:
        """(next node, factor on the edge) for each edge from a node."""
        u, a, d = node
        if self._closes(a, d):
            yield END, KroneckerPattern(a, u // d, self.columns // (a * d), d)
        for r in self.ranks:
            if r >= u // d:  # redundant
                continue
            for following in self._outer:
                if following % a == 0:
                    factor = KroneckerPattern(a, u // d, r * following // a, d)
                    for inner in self._inner[d]:
                        yield (r * d, following, inner), factor

    def graph(self) -> Any:
        """The whole DAG as a networkx.DiGraph, from node "start" to `END`; edges carry `factor` and `nnz`.

        Its paths are all chains of at most `max_nnz` per factor, with a few redundant ones: whether a rank is below the
        next factor's c depends on two edges. For small sizes; `cheapest` needs no graph.

        Raises:
            BadInput: the graph has more than 2,000,000 edges.
        """
        import networkx

        graph = networkx.DiGraph()
        waiting = list(self._starts)
        graph.add_edges_from(("start", node) for node in waiting)
        seen = set(waiting)
        while waiting:
            node = waiting.pop()
            for following, factor in self.successors(node):
                if self.max_nnz is not None and factor.nnz > self.max_nnz:
                    continue
                graph.add_edge(node, following, factor=factor, nnz=factor.nnz)
                if following not in seen and following != END:
                    seen.add(following)
                    waiting.append(following)
            if graph.number_of_edges() > MOST_EDGES:
                raise BadInput(
                    f"the chains of {self.rows} x {self.columns} make a graph of over {MOST_EDGES} edges; lower "
                    "max_nnz, give fewer ranks, or take the cheapest ones without a graph"
                )
        return graph

    @cached_property
    def _remaining(self) -> list[dict[Node, int]]:
        """By the number of factors left: least nnz from (u = d before, a, d) to the end if all ranks were 1."""
        pairs = [(a, d) for a in self._outer for d in self._inner]
        befores = list(self._inner)
        far = 1 << 62
        tables = [
            {(u, a, d): u * self.columns // d if u % d == 0 and self._closes(a, d) else far
             for u in befores for a, d in pairs}
        ]  # fmt: skip
        limit = self.max_factors or 64
        while len(tables) < limit:
            last = tables[-1]
            # The best d' of the next factor does not depend on the factors before it.
            best = {(d, a): min(last[d, a, inner] for inner in self._inner[d]) for d in befores for a in self._outer}
            table = {}
            for (u, a, d), value in last.items():
                steps = (u * n + best[d, n] for n in self._outer if n % a == 0)
                table[u, a, d] = value if u % d else min(value, min(steps, default=far))
            if table == last:
                break
            tables.append(table)
        return tables

    @cached_property
    def _onward(self) -> list[dict[tuple[int, int], int]]:
        """By the number of factors left: the minimum of `_remaining` over d', for (d, a')."""
        return [
            {(d, a): min(table[d, a, inner] for inner in self._inner[d]) for d in self._inner for a in self._outer}
            for table in self._remaining
        ]

    def _bound(self, node: Node, left: int) -> int:
        """A lower bound on the nnz of the ways from the node to the end in at most `left` factors."""
        u, a, d = node
        best = u * self.columns // d if self._closes(a, d) else 1 << 62
        if left > 1:
            onward = self._onward[min(left - 1, len(self._onward)) - 1]
            best = min(best, min(u * n + onward[d, n] for n in self._outer if n % a == 0))
        return best

    def cheapest(self) -> Iterator[KroneckerChain]:
        """Chains in order of nnz, one at a time, by best-first search with a lower bound on the remaining nnz."""
        budget = math.inf if self.max_nnz is None else self.max_nnz
        limit = self.max_factors or 64
        bounds: dict[tuple[Node, int], int] = {}
        order = itertools.count()
        heap: list[tuple[int, int, int, Node, int, tuple[KroneckerPattern, ...]]] = []

        def push(paid: int, node: Node, rank: int, done: tuple[KroneckerPattern, ...]) -> None:
            left = limit - len(done)
            if node != END:
                if left < 1:
                    return
                key = (node, min(left, len(self._remaining)))
                if key not in bounds:
                    bounds[key] = self._bound(node, left)
                total = paid + bounds[key]
            else:
                total = paid
            if total <= budget:  # on ties the longest partial chain first, which completes soonest
                heapq.heappush(heap, (total, -len(done), next(order), node, rank, done))

        for start in self._starts:
            push(0, start, 0, ())
        while heap:
            *_, node, rank, done = heapq.heappop(heap)
            if node == END:
                yield KroneckerChain(done)
                continue
            paid = sum(p.nnz for p in done)
            for following, factor in self.successors(node):
                if factor.c > rank:  # otherwise redundant with the factor before
                    r = following[0] // node[2] if following != END else 0
                    push(paid + factor.nnz, following, r, (*done, factor))


def cheapest_chains(
    rows: int,
    columns: int,
    count: int = 100,
    *,
    max_density: float = 1.0,
    max_factors: int | None = None,
    ranks: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
    full: bool = True,
) -> list[KroneckerChain]:
    """The `count` cheapest chains of [rows, columns] with nnz <= max_density . rows . columns, cheapest first.

    Raises:
        BadInput: only the dense matrix is within the density, or a limit is below its least value.
    """
    if not max_density > 0:
        raise BadInput(f"max_density is {max_density}, but a share of the dense matrix above 0 is needed")
    most = int(max_density * rows * columns)
    chains = Chains(rows, columns, max(1, most), max_factors, tuple(ranks), full)
    found = list(itertools.islice(chains.cheapest(), count))
    if not found or (len(found) == 1 and found[0].nnz == rows * columns):
        raise BadInput(
            f"a matrix of {rows} x {columns} has no chain within {max_density} of its {rows * columns} values: its "
            "only chain is dense; pad a side to a number with more divisors, or raise max_density"
        )
    return found


def monarch_chains(rows: int, columns: int, density: float) -> list[KroneckerChain]:
    """Monarch chains of [rows, columns], each with the highest rank within nnz <= density . rows . columns.

    Redundant chains, and those that leave over a third of the budget unused (ranks are integers), are omitted; the list
    is empty where none fits.
    """
    budget = density * rows * columns
    found = []
    for p, q in itertools.product(divisors(rows)[1:-1], divisors(columns)[1:-1]):
        rank = int(budget // KroneckerChain.monarch(rows, columns, p, q).nnz)
        if rank >= 1:
            chain = KroneckerChain.monarch(rows, columns, p, q, rank)
            if chain.redundant() is None and chain.nnz > budget * 2 / 3:
                found.append(chain)
    return found
