"""Operations and bytes of a call of a product-quantised layer."""

from __future__ import annotations

from basis_search.families.pq.spec import BUCKETS, LEVELS, Spec
from basis_search.families.protocol import Cost, element_size
from basis_search.layers.layer import LayerLike


def cost(spec: Spec, layer: LayerLike) -> Cost:
    """Per row: 4 comparisons and 3 fetched thresholds a tree, or 16 distances per k-means code; C look-ups per output.

    A distance of k-means costs one multiply-add per column (|p|^2 / 2 is known); the minimum takes 15 comparisons.
    C entries and a constant (offset, bias) are C additions per output; a uint8 table adds one multiplication. Of the
    inputs only the columns that are read count as traffic.
    """
    n, k, m, c = layer.batch, layer.in_features, layer.out_features, spec.codebooks
    tree, uint8 = spec.encoder == "tree", spec.table == "uint8"
    constants = m * (2 if uint8 else 0) + m  # scale and offset; bias
    encoder = c * (LEVELS + BUCKETS - 1) if tree else BUCKETS * k
    table = BUCKETS * c * m
    size = element_size(layer.dtype)
    return Cost(
        multiplications=n * ((m if uint8 else 0) + (0 if tree else BUCKETS * k)),
        additions=n * (c * m + (LEVELS * c if tree else BUCKETS * k + c * (BUCKETS - 1))),
        lookups=n * (c * m + (c * (LEVELS - 1) if tree else 0)),
        bytes=table * (1 if uint8 else 4)
        + (8 * m if uint8 else 0)
        + size * m
        + (c * (4 * LEVELS + size * (BUCKETS - 1)) if tree else size * encoder)
        + size * n * ((min(k, LEVELS * c) if tree else k) + m),
        parameters=table + encoder + constants,
    )
