"""The graph of matrix formats: merges (n, m, p) + (n, m, q) -> (n, m, p + q), projections and tensor products.

Formats are ordered, n <= m <= p, because the rank does not depend on the order of the sides.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from basis_search.errors import BadInput
from basis_search.schemes.algebra.scheme import BilinearScheme
from basis_search.schemes.algebra.transforms import (
    merge,
    project,
    sandwich,
    tensor_product,
    to_format,
)
from basis_search.schemes.constructions.derived import standard

if TYPE_CHECKING:
    import networkx as nx

Format = tuple[int, int, int]

# Least ranks in the literature as of 2026, over Z and over GF(2): targets of a search, not results of this project.
_OVER_Z: dict[Format, int] = {
    (2, 2, 2): 7,
    (2, 2, 3): 11,
    (2, 2, 4): 14,
    (2, 2, 5): 18,
    (2, 3, 3): 15,
    (2, 3, 4): 20,
    (2, 3, 5): 25,
    (2, 4, 4): 26,
    (2, 4, 5): 33,
    (2, 5, 5): 40,
    (3, 3, 3): 23,
    (3, 3, 4): 29,
    (3, 3, 5): 36,
    (3, 4, 4): 38,
    (3, 4, 5): 47,
    (3, 5, 5): 58,
    (4, 4, 4): 49,
    (4, 4, 5): 61,
    (4, 5, 5): 76,
    (5, 5, 5): 93,
}
BEST_KNOWN: dict[str, dict[Format, int]] = {
    "Z": _OVER_Z,
    "ZT": _OVER_Z,
    "Z2": {**_OVER_Z, (4, 4, 4): 47, (4, 4, 5): 60, (4, 5, 5): 73},
}


def ordered(n: int, m: int, p: int) -> Format:
    """The sides in ascending order."""
    a, b, c = sorted((n, m, p))
    return a, b, c


def all_formats(largest: int = 5, smallest: int = 2) -> list[Format]:
    """All formats with sides from `smallest` to `largest`, in ascending order of volume."""
    sides = range(smallest, largest + 1)
    return sorted(itertools.combinations_with_replacement(sides, 3), key=lambda f: (f[0] * f[1] * f[2], f))


def graph(largest: int = 5) -> nx.MultiDiGraph:
    """The graph of formats, with edges of kind "merge", "project" and "product" to the format that they build.

    Nodes are ordered formats with sides from 1 to `largest`; merge and product edges name the second format, `partner`.

    Raises:
        BadInput: `largest` outside 1 to 8.
    """
    if not 1 <= largest <= 8:
        raise BadInput(f"largest = {largest}, but the graph of formats has sides from 1 to 8")
    import networkx as nx

    formats = nx.MultiDiGraph()
    nodes = all_formats(largest, 1)
    formats.add_nodes_from((f"{n}x{m}x{p}", {"n": n, "m": m, "p": p, "naive": n * m * p}) for n, m, p in nodes)
    for whole in nodes:
        for left, right in splits(whole):
            formats.add_edge(_name(left), _name(whole), kind="merge", partner=_name(right))
            if left != right:
                formats.add_edge(_name(right), _name(whole), kind="merge", partner=_name(left))
        for side in sorted({s for s in whole if s > 1}):
            less = list(whole)
            less[less.index(side)] -= 1
            formats.add_edge(_name(whole), _name(ordered(*less)), kind="project", partner="")
        for left, right in factorisations(whole):
            formats.add_edge(_name(left), _name(whole), kind="product", partner=_name(right))
    return formats


def _name(f: Format) -> str:
    return f"{f[0]}x{f[1]}x{f[2]}"


def splits(whole: Format) -> Iterator[tuple[Format, Format]]:
    """Pairs of ordered formats that merge into `whole` along one side."""
    seen = set()
    for k, side in enumerate(whole):
        for part in range(1, side // 2 + 1):
            one, two = list(whole), list(whole)
            one[k], two[k] = side - part, part
            pair = ordered(*one), ordered(*two)
            if pair not in seen:
                seen.add(pair)
                yield pair


def factorisations(whole: Format) -> Iterator[tuple[Format, Format]]:
    """Pairs of ordered formats, neither trivial, whose tensor product is `whole`."""
    seen = set()
    divisors = [[d for d in range(1, side + 1) if side % d == 0] for side in whole]
    for left in itertools.product(*divisors):
        right = tuple(side // d for side, d in zip(whole, left, strict=True))
        if max(left) == 1 or max(right) == 1:
            continue
        pair = ordered(*left), ordered(right[0], right[1], right[2])
        if pair not in seen and pair[::-1] not in seen:
            seen.add(pair)
            yield pair


def starts_for(
    whole: Format, known: dict[Format, list[BilinearScheme]], random: np.random.Generator, within: int = 12
) -> list[BilinearScheme]:
    """Schemes of the format `whole` built from known schemes of other formats, in ascending order of rank.

    There is one per merge, projection and product, from schemes drawn at random among the best known of each format;
    formats with a side of 1 use the standard algorithm. Schemes more than `within` ranks above the lowest are dropped.
    All known schemes must be over one ring.
    """
    ring = next((s.ring for held in known.values() for s in held), "Z2")

    def draw(f: Format) -> BilinearScheme | None:
        if known.get(f):
            least = min(s.rank for s in known[f])
            held = [s for s in known[f] if s.rank == least]
            return held[int(random.integers(len(held)))]
        return _standard(f, ring) if f[0] == 1 else None

    built = [_standard(whole, ring)]
    for k, side in enumerate(whole):
        for part in range(1, side // 2 + 1):
            sides = [list(whole), list(whole)]
            sides[0][k], sides[1][k] = side - part, part
            parts = [draw(ordered(*f)) for f in sides]
            if parts[0] is not None and parts[1] is not None:
                one, two = to_format(parts[0], *sides[0]), to_format(parts[1], *sides[1])
                built.append(merge(one, two, "nmp"[k]))
        more = list(whole)
        more[k] += 1
        larger = draw(ordered(*more))
        if larger is not None:
            turned = _randomly_transformed(to_format(larger, *more), random)
            built.append(project(turned, "nmp"[k], int(random.integers(more[k]))))
    for left, right in factorisations(whole):
        parts = [draw(left), draw(right)]
        if parts[0] is not None and parts[1] is not None:
            product = _product(parts[0], parts[1], whole)
            if product is not None:
                built.append(product)
    built.sort(key=lambda s: s.rank)
    return [s for s in built if s.rank <= built[0].rank + within]


def _randomly_transformed(scheme: BilinearScheme, random: np.random.Generator) -> BilinearScheme:
    """Over Z2 the scheme after a random change of its three bases, so that projections vary; else unchanged."""
    if scheme.ring != "Z2":
        return scheme
    P, Q, R = (_invertible(side, random) for side in scheme.shape)
    return sandwich(scheme, P, Q, R)


def _invertible(side: int, random: np.random.Generator) -> NDArray[np.int64]:
    """A random invertible matrix over GF(2): lower times upper triangular with a diagonal of ones, rows permuted."""
    lower, upper = (random.integers(0, 2, (side, side)) for _ in range(2))
    one = np.eye(side, dtype=np.int64)
    product = (np.tril(lower, -1) + one) @ (np.triu(upper, 1) + one) % 2
    return np.asarray(product[random.permutation(side)], dtype=np.int64)


def _product(left: BilinearScheme, right: BilinearScheme, whole: Format) -> BilinearScheme | None:
    for a in set(itertools.permutations(left.shape)):
        if all(w % s == 0 for w, s in zip(whole, a, strict=True)):
            b = tuple(w // s for w, s in zip(whole, a, strict=True))
            if sorted(b) == sorted(right.shape):
                return tensor_product(to_format(left, *a), to_format(right, *b))
    return None


def _standard(f: Format, ring: str) -> BilinearScheme:
    scheme = standard(*f)
    return scheme.reduce_mod(2) if ring == "Z2" else scheme.to_ring(ring)
