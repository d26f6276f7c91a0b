"""Spec of a Strassen-Tile layer: tile t, rank r and bases, Y_IJ = unvec(D sum_K (E vec X_IK) * w_KJ)."""

from __future__ import annotations

from dataclasses import dataclass

from basis_search.errors import BadInput, near_miss
from basis_search.families.stl.tile_shape import Sides, sides
from basis_search.schemes.numerical import approximation, ternary_catalogue

EXACT: dict[str, tuple[int, int]] = {
    "strassen": (2, 7),
    "winograd": (2, 7),
    "laderman": (3, 23),
    "strassen2": (4, 49),
    "winograd2": (4, 49),
}
"""Exact schemes by name: (tile, rank). A trailing 2: the scheme nested in itself. "standard" fits any tile."""

TERNARY = ("ternary", "ternary-turned")
"""Approximate bases of -1, 0 and 1, applied by additions; "turned": transposed, with encoder and decoder exchanged."""

BEST_EXACT = {2: "winograd", 3: "laderman", 4: "winograd2"}
TILES = (1, 2, 3, 4)
MOST_SWEEPS = 1000


@dataclass(frozen=True)
class Spec:
    """A Strassen-Tile layer (Ailon et al., "Changing Base Without Losing Pace", arXiv 2503.12211).

    Args:
        tile: side t of square tiles of rows (tokens) by features, or rows x inputs x outputs such as
            "2x4x4": tiles of 2 tokens by 4 inputs, and of 2 tokens by 4 outputs. Triton kernels take only square tiles.
        rank: products r per triple of tiles; at most those of the standard product, t^3.
        basis: "approximate" (the best real bases of that rank in the catalogue), "ternary" or "ternary-turned"
            (bases of -1, 0 and 1: a larger residual, but almost free encode and decode), or an exact scheme:
            "standard", "strassen", "winograd" (tile 2, rank 7), "laderman" (tile 3, rank 23),
            "strassen2", "winograd2" (tile 4, rank 49).
        waist: rank of an additional low-rank part, y = U (V x) + STL(x), fitted together with the tiles; 0: none.
        sweeps: limit on rounds in which approximate bases are fitted to the layer, each about as slow as one solve for
            the encoded weights; 0: the bases of the catalogue.

    Raises:
        BadInput: a value is out of its limits, or tile, rank and basis do not match.
    """

    tile: int | str = 4
    rank: int = 24
    basis: str = "approximate"
    sweeps: int = 0
    waist: int = 0

    def __post_init__(self) -> None:
        for label in ("tile", "rank", "sweeps", "waist"):
            value = getattr(self, label)
            if label == "tile" and isinstance(value, str):
                self._check_sides(value)
            elif isinstance(value, bool) or not isinstance(value, int):
                raise BadInput(f"stl: {label} is {value!r}, but a whole number is needed")
        if not isinstance(self.basis, str):
            raise BadInput(f"stl: basis is {self.basis!r}, but the name of a basis is needed, such as 'approximate'")
        names = ("approximate", *TERNARY, "standard", *EXACT)
        if self.basis not in names:
            raise BadInput(f"stl: there is no basis {self.basis!r}{near_miss(self.basis, names)}")
        if isinstance(self.tile, int) and self.tile not in TILES:
            raise BadInput(
                f"stl: tile is {self.tile}, but it must be from {TILES[0]} to {TILES[-1]}; 4 is the usual choice"
            )
        if not 0 <= self.sweeps <= MOST_SWEEPS:
            raise BadInput(f"stl: sweeps is {self.sweeps}, but it must be from 0 to {MOST_SWEEPS}")
        if self.sweeps and self.basis in TERNARY:
            raise BadInput(
                f"stl: sweeps is {self.sweeps}, but {self.basis!r} bases are programs of additions and "
                "not fitted; use 0, or basis='approximate'"
            )
        if self.sweeps and self.basis != "approximate":
            raise BadInput(
                f"stl: sweeps is {self.sweeps}, but the bases of the exact scheme {self.basis!r} are not fitted; use 0"
            )
        if self.waist < 0:
            raise BadInput(f"stl: waist is {self.waist}, but it must be at least 0, the rank of the low-rank part")
        if self.waist and self.basis not in ("approximate", *TERNARY):
            raise BadInput(
                f"stl: waist is {self.waist}, but the scheme {self.basis!r} is exact and leaves no error; use 0"
            )
        if self.basis in ("approximate", *TERNARY):
            self._check_approximate()
        else:
            self._check_exact()

    @property
    def sides(self) -> Sides:
        """Rows, inputs and outputs of a tile product."""
        return sides(self.tile)

    def _check_sides(self, tile: str) -> None:
        n, k, m = sides(tile)
        if n == k == m:
            raise BadInput(f"stl: tile is {tile!r}, which is square; use tile={n}")
        if self.basis in EXACT:
            raise BadInput(
                f"stl: tile is {tile!r}, but the scheme {self.basis!r} is for square tiles; "
                f"use tile={EXACT[self.basis][0]}"
            )

    def _check_approximate(self) -> None:
        known = approximation if self.basis == "approximate" else ternary_catalogue
        ranks = known.known_ranks(*(self.sides[i] for i in ((0, 2, 1) if self.basis == TERNARY[1] else (0, 1, 2))))
        if not ranks:
            raise BadInput(
                f"stl: there are no {self.basis} bases for tile {self.tile}; use tile 2, 3 or 4, or an exact scheme"
            )
        if isinstance(self.tile, int):
            self._check_below_exact(self.tile)
        if self.rank not in ranks:
            nearest = min(ranks, key=lambda rank: abs(rank - self.rank))
            raise BadInput(
                f"stl: rank is {self.rank}, but the {self.basis} bases for tile {self.tile} have ranks "
                f"{_spans(ranks)}; the nearest is {nearest}"
            )

    def _check_below_exact(self, tile: int) -> None:
        exact = BEST_EXACT[tile]
        limit = EXACT[exact][1]
        if self.rank >= limit:
            raise BadInput(
                f"stl: rank is {self.rank}, but tile {self.tile} has an exact scheme of rank {limit}; "
                f"use basis={exact!r} with rank={limit}, or a rank below it"
            )

    def _check_exact(self) -> None:
        n, k, m = self.sides
        tile, rank = (self.tile, n * k * m) if self.basis == "standard" else EXACT[self.basis]
        if self.tile != tile:
            raise BadInput(
                f"stl: the scheme {self.basis!r} is for {tile}x{tile} tiles, but tile is {self.tile}; use tile={tile}"
            )
        if self.rank != rank:
            raise BadInput(
                f"stl: the scheme {self.basis!r} has rank {rank} on {tile}x{tile} tiles, but rank is {self.rank}; "
                f"use rank={rank}, or basis='approximate' for fewer products"
            )


def _spans(ranks: tuple[int, ...]) -> str:
    """(8, 9, 10, 12) -> '8-10, 12'."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][-1] + 1:
            spans[-1].append(rank)
        else:
            spans.append([rank])
    return ", ".join(f"{s[0]}-{s[-1]}" if len(s) > 1 else str(s[0]) for s in spans)
