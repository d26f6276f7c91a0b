"""The structure of a product-quantised layer: how many codebooks, how inputs are encoded, how tables are stored."""

from __future__ import annotations

from dataclasses import dataclass

from basis_search.errors import BadInput
from basis_search.family import near_miss

BUCKETS = 16
"""Prototypes of one codebook: 4-bit codes."""
LEVELS = 4
"""Compares that choose one of them."""

ENCODERS = ("tree", "kmeans")
TABLES = ("uint8", "float32")


@dataclass(frozen=True)
class Spec:
    """y[m] = sum over codebooks c of T[c, code_c(x), m], with 16 codes per codebook.

    Attributes:
        codebooks: number C of codebooks, each on a contiguous group of columns; at most the layer's input width.
        encoder: "tree", four compares per code (MADDNESS, arXiv 2106.10860), or "kmeans", the nearest of 16 centroids.
        table: "uint8", with one scale and one offset per output, or "float32".

    Raises:
        BadInput: codebooks below 1, or an unknown encoder or table.
    """

    codebooks: int = 16
    encoder: str = "tree"
    table: str = "uint8"

    def __post_init__(self) -> None:
        if isinstance(self.codebooks, bool) or not isinstance(self.codebooks, int) or self.codebooks < 1:
            raise BadInput(f"codebooks is {self.codebooks!r}, but an integer of at least 1 is needed")
        if self.encoder not in ENCODERS:
            raise BadInput(f"there is no encoder {self.encoder!r}{near_miss(str(self.encoder), ENCODERS)}")
        if self.table not in TABLES:
            raise BadInput(f"there is no table type {self.table!r}{near_miss(str(self.table), TABLES)}")


def check(spec: Spec, in_features: int, rows: int) -> None:
    """Raises BadInput if a layer of that width, with that many rows to fit on, cannot have this structure."""
    if spec.codebooks > in_features:
        raise BadInput(
            f"{spec.codebooks} codebooks do not fit an input of width {in_features}: each needs at least one column of "
            f"its own; ask for at most {in_features}"
        )
    if rows < BUCKETS:
        raise BadInput(
            f"{rows} rows to fit on are fewer than the {BUCKETS} buckets of a codebook; capture at least {BUCKETS} "
            "rows, better some thousand"
        )


def bounds(in_features: int, codebooks: int) -> list[int]:
    """First column of each codebook's group, and the end; the first in_features mod codebooks are one wider."""
    width, wider = divmod(in_features, codebooks)
    return [c * width + min(c, wider) for c in range(codebooks + 1)]
