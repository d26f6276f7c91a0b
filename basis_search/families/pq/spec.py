"""The structure of a product-quantised layer: number of codebooks, encoder, storage of tables."""

from __future__ import annotations

import math
from dataclasses import dataclass

from basis_search.errors import BadInput, near_miss

BUCKETS = 16
"""Prototypes of one codebook: 4-bit codes."""
LEVELS = 4
"""Comparisons that choose a prototype."""

ENCODERS = ("tree", "kmeans")
TABLES = ("uint8", "float32")
SUMS = ("exact", "averaged")
AVERAGED = 16
"""Tables averaged by one tree of (a + b + 1) >> 1."""
MOST_GROUPS = 256
"""Number of bytes whose sum fits in 16 bits."""


@dataclass(frozen=True)
class Spec:
    """y[m] = sum over codebooks c of T[c, code_c(x), m], with 16 codes per codebook.

    Attributes:
        codebooks: number C of codebooks, each on a contiguous group of columns; at most the layer's input width.
        encoder: "tree", four comparisons a code (MADDNESS, arXiv 2106.10860), or "kmeans", the nearest of 16 centroids.
        table: "uint8", with one scale and one offset per output, or "float32".
        sums: "exact", or "averaged" in 8 bits over groups of gcd(C, 16) tables, as published: twice as fast where the
            processor has no byte dot products, at a cost in accuracy that grows with C.

    Raises:
        BadInput: codebooks below 1, an unknown encoder, table or sum, or averages that the tables do not admit.
    """

    codebooks: int = 16
    encoder: str = "tree"
    table: str = "uint8"
    sums: str = "exact"

    def __post_init__(self) -> None:
        if isinstance(self.codebooks, bool) or not isinstance(self.codebooks, int) or self.codebooks < 1:
            raise BadInput(f"codebooks is {self.codebooks!r}, but an integer of at least 1 is needed")
        if self.encoder not in ENCODERS:
            raise BadInput(f"there is no encoder {self.encoder!r}{near_miss(str(self.encoder), ENCODERS)}")
        if self.table not in TABLES:
            raise BadInput(f"there is no table type {self.table!r}{near_miss(str(self.table), TABLES)}")
        if self.sums not in SUMS:
            raise BadInput(f"there is no kind of sum {self.sums!r}{near_miss(str(self.sums), SUMS)}")
        if self.sums == "averaged" and self.table != "uint8":
            raise BadInput(f"sums are averaged in 8 bits, but the table is {self.table}; take uint8 or exact sums")
        if self.sums == "averaged" and self.codebooks // self.group > MOST_GROUPS:
            raise BadInput(
                f"{self.codebooks} codebooks make {self.codebooks // self.group} groups of averaged tables, but at "
                f"most {MOST_GROUPS} add up in 16 bits; take a multiple of {AVERAGED} codebooks or exact sums"
            )

    @property
    def group(self) -> int:
        """Tables averaged together: gcd(C, 16), or 1 where sums are exact."""
        return math.gcd(self.codebooks, AVERAGED) if self.sums == "averaged" else 1


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
