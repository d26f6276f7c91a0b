"""The search space: Monarch chains by blocks and density, and longer chains, all cheaper than the dense layer."""

from __future__ import annotations

import itertools
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Any

from basis_search.errors import BadInput
from basis_search.families.kronecker.chain_enumeration import divisors
from basis_search.families.kronecker.patterns import KroneckerChain
from basis_search.families.kronecker.spec import Spec
from basis_search.families.kronecker.time_model import REFERENCE_CPU
from basis_search.layers.layer import LayerLike, LayerShape


@dataclass
class Space:
    """Bounds of the search.

    Attributes:
        max_factors: length of the longest chains, 2 or 3.
        max_density: limit on multiplications, as a share of the dense layer's.
        density_levels: number of densities from there down, a factor 2^{1/2} apart.
        max_choices: limit on the values of one parameter.
        max_padding: limit on padded rows or columns, as a share of the side.
        max_time: limit on the predicted time on a CPU, relative to the dense layer's.
    """

    max_factors: int = 3
    max_density: float = 0.9
    density_levels: int = 8
    max_choices: int = 24
    max_padding: float = 0.13
    max_time: float = 4.0


def padded(side: int, max_padding: float) -> int:
    """The side or a multiple of 2, 4, 8 or 16 slightly above: the one with most divisors, then the smallest."""
    options = {side, *(-(-side // g) * g for g in (2, 4, 8, 16))}
    allowed = [n for n in options if n <= side * (1 + max_padding)]
    return max(sorted(allowed), key=lambda n: len(divisors(n)))


def _thinned(values: list[Any], limit: int) -> list[Any]:
    """At most `limit` evenly spaced values, including both ends."""
    if len(values) <= limit:
        return values
    return [values[round(i * (len(values) - 1) / (limit - 1))] for i in range(limit)]


def fast_enough(chain: KroneckerChain, layer: LayerLike, space: Space) -> bool:
    """Whether the predicted time is within `max_time`; always true off the CPU, where there is no time model."""
    if layer.device.type != "cpu":
        return True
    ratio = REFERENCE_CPU.dense_ratio(chain, layer.out_features, layer.in_features, layer.batch)
    return ratio <= space.max_time


def _monarch_sides(layer: LayerLike, space: Space) -> tuple[int, int, list[int], list[int]]:
    """(M, N, values of p, values of q) for which every Monarch chain of rank 1 is within the density."""
    rows, columns = padded(layer.out_features, space.max_padding), padded(layer.in_features, space.max_padding)
    budget = space.max_density * layer.out_features * layer.in_features
    # nnz = M q r + r N M / p: half of the budget for each factor
    qs = [q for q in divisors(columns) if 1 < q < columns and rows * q <= budget / 2]
    ps = [p for p in divisors(rows) if 1 < p < rows and columns * rows // p <= budget / 2]
    pairs = [
        (p, q)
        for p, q in itertools.product(ps, qs)
        if fast_enough(KroneckerChain.monarch(rows, columns, p, q), layer, space)
    ]
    ps, qs = (sorted(set(side)) for side in zip(*pairs, strict=True)) if pairs else ([], [])
    return rows, columns, _thinned(ps, space.max_choices), _thinned(qs, space.max_choices)


def long_chains(rows: int, columns: int, budget: float, limit: int) -> list[str]:
    """Three-factor chains of rank 1, (1,p,u,.)*(u,.,v,.)*(uv,.,.,1), within the budget, by cost; at most `limit`."""
    found: dict[str, int] = {}
    for p, rest in ((p, rows // p) for p in divisors(rows) if 1 < p < rows):
        for s in (s for s in divisors(rest) if 1 < s < rest):
            for u, v in itertools.product(divisors(columns), repeat=2):
                if u == 1 or v == 1 or columns % (u * v) or columns == u * v:
                    continue
                chain = KroneckerChain.of(
                    (1, p, u, rest), (u, s, v, rest // s), (u * v, rest // s, columns // (u * v), 1)
                )
                if chain.nnz <= budget and chain.redundant() is None:
                    found[str(chain)] = chain.nnz
    return _thinned([text for text, _ in sorted(found.items(), key=lambda item: (item[1], item[0]))], limit)


@lru_cache(maxsize=256)
def _choices(shape: LayerShape, bounds: tuple[Any, ...]) -> tuple[int, int, list[int], list[int], list[str]]:
    """(M, N, values of p, values of q, chains of three factors), cached: every trial needs them."""
    space = Space(*bounds)
    rows, columns, ps, qs = _monarch_sides(shape, space)
    budget = space.max_density * shape.out_features * shape.in_features
    longer = long_chains(rows, columns, budget, space.max_choices) if space.max_factors > 2 else []
    return rows, columns, ps, qs, [text for text in longer if fast_enough(KroneckerChain.parse(text), shape, space)]


def suggest(trial: Any, layer: LayerLike, space: Space) -> Spec:
    """A chain with fewer multiplications than the dense layer; the choices depend only on the layer's shape.

    Raises:
        BadInput: the layer is so small that no chain is cheaper than dense.
    """
    shape = LayerShape(layer.in_features, layer.out_features, layer.batch, layer.dtype, layer.device)
    rows, columns, ps, qs, longer = _choices(shape, astuple(space))
    budget = space.max_density * layer.out_features * layer.in_features
    lengths = [n for n, some in ((2, ps and qs), (3, longer)) if some]
    if not lengths:
        raise BadInput(
            f"a layer of {layer.out_features} x {layer.in_features} (out x in) has no Kronecker-sparse chain within "
            f"{space.max_density} of its {layer.out_features * layer.in_features} multiplications: its only chain is "
            f"dense, or others would take over {space.max_time} times its time; keep it dense or raise max_density, "
            "max_padding or max_time"
        )
    if trial.suggest_categorical("factors", lengths) == 3:
        return Spec(chain=trial.suggest_categorical("chain", longer))
    p = trial.suggest_categorical("p", ps)
    q = trial.suggest_categorical("q", qs)
    level = trial.suggest_int("density", 1, space.density_levels)
    allowed = budget * 2 ** ((level - space.density_levels) / 2)
    rank = max(1, int(allowed // KroneckerChain.monarch(rows, columns, p, q).nnz))
    return Spec(chain=str(KroneckerChain.monarch(rows, columns, p, q, rank)))
