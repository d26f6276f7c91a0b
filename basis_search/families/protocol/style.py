"""Colours and marker of a family in reports."""

from __future__ import annotations

import re
from dataclasses import dataclass

from basis_search.errors import BadInput

MARKERS = (
    "star", "diamond", "triangle", "circle", "square", "cross", "hexagon", "pentagon", "plus", "triangle-down",
    "triangle-left", "triangle-right",
)  # fmt: skip
"""Markers that page, legend and pictures can draw; reports give "hexagon" to families that are not installed."""
COLOUR = re.compile(r"#[0-9A-Fa-f]{6}")


@dataclass(frozen=True)
class Style:
    """How reports draw a family; no two families share a colour or a marker.

    Attributes:
        light: colour on a light page, "#RRGGBB".
        dark: colour on a dark page, "#RRGGBB".
        marker: one of `MARKERS`.

    Raises:
        BadInput: a colour or the marker is not of this form.
    """

    light: str
    dark: str
    marker: str

    def __post_init__(self) -> None:
        for colour in (self.light, self.dark):
            if not isinstance(colour, str) or not COLOUR.fullmatch(colour):
                raise BadInput(f"a style's colour is {colour!r}, but it must be of the form '#0072B2'")
        if self.marker not in MARKERS:
            raise BadInput(f"a style's marker is {self.marker!r}, but it must be one of: {', '.join(MARKERS)}")
