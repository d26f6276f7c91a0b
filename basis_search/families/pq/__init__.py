"""Product quantisation: y = sum_c T[c, code_c(x)], codes of 4 bits, tables of what each code contributes.

The inputs of a layer are cut into C groups of columns; each group's values are replaced by one of 16 prototypes, whose
product with the weights is known beforehand. No multiplication by a weight is left: a row costs 4 C compares, an output
C look-ups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from basis_search.families.pq.codebook import Codebook
from basis_search.families.pq.fit import fit
from basis_search.families.pq.forecast import forecast
from basis_search.families.pq.kernels import KERNELS
from basis_search.families.pq.spec import BUCKETS, ENCODERS, LEVELS, TABLES, Spec, check
from basis_search.families.pq.training import TrainableProduct
from basis_search.families.protocol import Cost, element_size
from basis_search.layers.layer import Layer, LayerLike

__all__ = [
    "FITS_ROWS",
    "KERNELS",
    "Codebook",
    "Space",
    "Spec",
    "TrainableProduct",
    "cost",
    "fit",
    "forecast",
    "suggest",
]

FITS_ROWS = True


@dataclass
class Space:
    """Bounds of the search.

    Attributes:
        columns_per_codebook: narrowest and widest group; C lies between in / widest and in / narrowest.
        max_codebooks: no more than these, however wide the layer is.
        encoders, tables: the choices of `Spec`.
    """

    columns_per_codebook: tuple[int, int] = (2, 32)
    max_codebooks: int = 256
    encoders: tuple[str, ...] = ENCODERS
    tables: tuple[str, ...] = TABLES


def suggest(trial: Any, layer: Layer, space: Space) -> Spec:
    """One spec from an optuna trial.

    Raises:
        BadInput: the layer has fewer rows to fit on than a codebook has buckets.
    """
    narrowest, widest = space.columns_per_codebook
    high = max(1, min(layer.in_features // narrowest, space.max_codebooks))
    low = min(high, max(1, layer.in_features // widest))
    check(Spec(low), layer.in_features, len(layer.inputs))
    return Spec(
        codebooks=trial.suggest_int("codebooks", low, high, log=True),
        encoder=trial.suggest_categorical("encoder", list(space.encoders)),
        table=trial.suggest_categorical("table", list(space.tables)),
    )


def cost(spec: Spec, layer: LayerLike) -> Cost:
    """Per row: 4 compares and 3 fetched thresholds per tree, or 16 distances per k-means code; C look-ups per output.

    A distance of k-means costs one multiply-add per column (|p|^2 / 2 is known); finding the least takes 15 compares.
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
