"""The structure of a Kronecker-sparse replacement: one chain, W ~ K_1 K_2 ... K_L cut to [out, in]."""

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

    Sides larger than the layer's are padding: zero inputs, outputs that are dropped. A chain may cost more than dense.

    Raises:
        BadInput: the text is no chain, or two patterns do not compose or are not chainable (both are named).
    """

    chain: str = "(1,16,16,16)*(16,16,16,1)"

    def __post_init__(self) -> None:
        _parse(self.chain).require_chainable()

    @property
    def parsed(self) -> KroneckerChain:
        return _parse(self.chain)


def misfit(spec: Spec, layer: LayerLike) -> str | None:
    """Why the chain cannot stand for a layer of that shape, or None where it can."""
    rows, columns = spec.parsed.shape
    if rows < layer.out_features or columns < layer.in_features:
        return (
            f"the chain {spec.chain} is {rows} x {columns}, but the layer is {layer.out_features} x "
            f"{layer.in_features} (out x in); its sides must be at least as large"
        )
    return None


def require_fit(spec: Spec, layer: LayerLike) -> None:
    """Raises BadInput where `misfit` has a reason."""
    reason = misfit(spec, layer)
    if reason is not None:
        raise BadInput(reason)
