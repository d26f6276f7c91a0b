"""Example specs of Kronecker-sparse chains: Monarch chains of two factors."""

from __future__ import annotations

import math

from basis_search.families.kronecker.spec import Spec
from basis_search.layers.layer import LayerLike

BLOCK_SIDES = (2, 4, 8, 16, 32)
"""Sides p of blocks from which the examples' chains are made."""


def examples(layer: LayerLike) -> tuple[Spec, ...]:
    """Chains (1,p,p,q)*(p,q,r,1) with p q >= out and p r >= in, least padding first, then most square blocks."""
    k, m = layer.in_features, layer.out_features
    chains = []
    for p in sorted(BLOCK_SIDES, key=lambda p: (-k % p + -m % p, abs(math.log(p * p / min(k, m))))):
        q, r = -(-m // p), -(-k // p)
        chains.append(Spec(chain=f"(1,{p},{p},{q})*({p},{q},{r},1)"))
    return tuple(chains)
