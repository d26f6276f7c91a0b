"""Cost of one call of a Kronecker-sparse chain: batch . nnz multiply-adds."""

from __future__ import annotations

from basis_search.families.kronecker.spec import Spec, require_fit
from basis_search.families.protocol import Cost, element_size
from basis_search.layers.layer import LayerLike


def cost(spec: Spec, layer: LayerLike) -> Cost:
    """One multiplication and one addition per stored value and row, including padding; bytes of one fused call.

    Raises:
        BadInput: the chain is smaller than the layer.
    """
    require_fit(spec, layer)
    n, nnz = layer.batch, spec.parsed.nnz
    parameters = nnz + layer.out_features
    return Cost(
        multiplications=n * nnz,
        additions=n * nnz,
        lookups=0,
        bytes=element_size(layer.dtype) * (parameters + n * layer.in_features + n * layer.out_features),
        parameters=parameters,
    )
