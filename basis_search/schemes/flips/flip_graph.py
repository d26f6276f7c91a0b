"""The flip graph around a scheme: schemes of its format and the flips and reductions between them.

A flip turns a.b.c + a.b'.c' into a.(b + t b').c + a.b'.(c' - t c), t = 1 or -1; a reduction is a flip that leaves a
zero factor, whose term is dropped. Schemes that differ only in the order and signs of their terms are one node.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from basis_search.errors import BadInput
from basis_search.schemes.algebra.rings import Array
from basis_search.schemes.algebra.scheme import BilinearScheme

if TYPE_CHECKING:
    import networkx as nx

RINGS = ("Z2", "ZT", "Z")
MAX_NODES = 20_000


def neighbours(scheme: BilinearScheme) -> Iterator[BilinearScheme]:
    """The distinct schemes that are one flip or reduction away.

    Raises:
        BadInput: a ring other than Z2, ZT and Z.
    """
    if scheme.ring not in RINGS:
        raise BadInput(
            f"flips are defined over {', '.join(RINGS)}, not over {scheme.ring}; reduce or convert the scheme"
        )
    factors = [np.asarray(x, dtype=np.int64) for x in (scheme.U, scheme.V, scheme.W)]
    seen = {scheme.fingerprint}
    for a in range(3):
        for i, j, sign in _parallel_rows(factors[a], scheme.ring):
            for b, c in ((k, 3 - a - k) for k in range(3) if k != a):
                for t in (1,) if scheme.ring == "Z2" else (1, -1):
                    moved = [x.copy() for x in factors]
                    # row j of factor a is sign times row i, so term j is a . (sign b') . c'
                    moved[b][i] += t * sign * factors[b][j]
                    moved[c][j] -= t * factors[c][i]
                    found = _scheme(scheme, moved)
                    if found is not None and found.fingerprint not in seen:
                        seen.add(found.fingerprint)
                        yield found


def _parallel_rows(rows: Array, ring: str) -> Iterator[tuple[int, int, int]]:
    """(i, j, s) for i != j with row j = s row i, s = 1 or -1."""
    for i in range(len(rows)):
        for j in range(len(rows)):
            if i != j and (rows[i] == rows[j]).all():
                yield i, j, 1
            elif i != j and ring != "Z2" and (rows[i] == -rows[j]).all():
                yield i, j, -1


def _scheme(parent: BilinearScheme, factors: list[Array]) -> BilinearScheme | None:
    if parent.ring == "Z2":
        factors = [x % 2 for x in factors]
    elif parent.ring == "ZT" and max(np.abs(x).max() for x in factors) > 1:
        return None
    kept = np.logical_and.reduce([x.any(axis=1) for x in factors])
    U, V, W = (x[kept] for x in factors)
    return BilinearScheme(parent.n, parent.m, parent.p, U, V, W, parent.ring)


def neighbourhood(scheme: BilinearScheme, nodes: int = 200) -> nx.Graph:
    """At most `nodes` nearest schemes in the flip graph, breadth first, and the edges found on the way.

    Nodes are numbered, 0 is the scheme itself, and have `rank`, `nnz`, `distance` and `fingerprint`; edges have `kind`
    "flip" or "reduction". The scheme of node k is `graph.graph["schemes"][k]`.

    Raises:
        BadInput: `nodes` outside 1 to 20000, a ring without flips, or a scheme that does not verify.
    """
    if isinstance(nodes, bool) or not isinstance(nodes, int) or not 1 <= nodes <= MAX_NODES:
        raise BadInput(f"nodes = {nodes!r}, but a neighbourhood takes 1 to {MAX_NODES} schemes")
    if not scheme.verify():
        raise BadInput(f"the scheme does not verify: {scheme.first_violation()}")
    import networkx as nx

    graph = nx.Graph(name=f"flip graph around {scheme.format} of rank {scheme.rank} over {scheme.ring}")
    schemes: list[BilinearScheme] = []
    known: dict[str, int] = {}

    def add(one: BilinearScheme, distance: int) -> int:
        known[one.fingerprint] = node = len(schemes)
        schemes.append(one)
        graph.add_node(node, rank=one.rank, nnz=one.nnz, distance=distance, fingerprint=one.fingerprint)
        return node

    waiting = deque([add(scheme, 0)])
    while waiting:
        here = waiting.popleft()
        for other in neighbours(schemes[here]):
            there = known.get(other.fingerprint)
            if there is None:
                if len(schemes) == nodes:
                    continue
                there = add(other, graph.nodes[here]["distance"] + 1)
                waiting.append(there)
            kind = "flip" if schemes[here].rank == other.rank else "reduction"
            graph.add_edge(here, there, kind=kind)
    graph.graph["schemes"] = schemes
    return graph
