"""The search space of product quantisation: number of codebooks, encoder and table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from basis_search.families.pq.spec import ENCODERS, TABLES, Spec, check
from basis_search.layers.layer import Layer


@dataclass
class Space:
    """Bounds of the search.

    Attributes:
        columns_per_codebook: narrowest and widest group; C is between in / widest and in / narrowest.
        max_codebooks: upper limit of C, however wide the layer is.
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
