"""Sides n x k x m of a tile product: tiles [n, k] of X, [k, m] of W^T and [n, m] of Y."""

from __future__ import annotations

import re

from basis_search.errors import BadInput

Sides = tuple[int, int, int]
LONGEST_SIDE = 8


def sides(tile: int | str | Sides) -> Sides:
    """(rows, inputs, outputs): 4 -> (4, 4, 4), "2x4x4" -> (2, 4, 4).

    Raises:
        BadInput: the text has another form, or a side is out of its limits.
    """
    if isinstance(tile, tuple):
        return tile
    if isinstance(tile, int):
        return tile, tile, tile
    match = re.fullmatch(r"([1-9]\d?)x([1-9]\d?)x([1-9]\d?)", tile, re.ASCII)
    if match is None or max(found := tuple(map(int, match.groups()))) > LONGEST_SIDE:
        raise BadInput(
            f"stl: tile is {tile!r}, but a whole number such as 4 is needed, or rows x inputs x outputs up to "
            f"{LONGEST_SIDE} such as '2x4x4'"
        )
    n, k, m = found
    return n, k, m
