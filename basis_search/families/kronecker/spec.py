"""Spec of a Kronecker-sparse replacement: one chain, W ~ K_1 K_2 ... K_L truncated to [out, in]."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from basis_search.errors import BadInput
from basis_search.families.kronecker.patterns import KroneckerChain
from basis_search.layers.layer import LayerLike

_parse = lru_cache(maxsize=4096)(KroneckerChain.parse)


@dataclass(frozen=True)
class Spec:
    """A chain in text form, "(1,16,16,16)*(16,16,16,1)", leftmost factor first, of shape [M, N], M >= out, N >= in.

    Sides larger than the layer's are padding: zero inputs, dropped outputs. A chain may cost more than a dense layer.

    Raises:
        BadInput: the text is not a chain, or two patterns (both are named) do not compose or are not chainable.
    """

    chain: str = "(1,16,16,16)*(16,16,16,1)"

    def __post_init__(self) -> None:
        _parse(self.chain).require_chainable()

    @property
    def parsed(self) -> KroneckerChain:
        return _parse(self.chain)


def misfit(spec: Spec, layer: LayerLike) -> str | None:
    """Why the chain cannot replace a layer of that shape; None if it can."""
    rows, columns = spec.parsed.shape
    if rows < layer.out_features or columns < layer.in_features:
        return (
            f"the chain {spec.chain} is {rows} x {columns}, but the layer is {layer.out_features} x "
            f"{layer.in_features} (out x in); its sides must be at least as large"
        )
    return None


def require_fit(spec: Spec, layer: LayerLike) -> None:
    """Raise BadInput with the reason of `misfit`, if any."""
    reason = misfit(spec, layer)
    if reason is not None:
        raise BadInput(reason)
