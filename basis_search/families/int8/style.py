"""Colours and marker of int8 layers in reports: grey."""

from basis_search.families.protocol import Style

STYLE = Style(light="#7A7F87", dark="#A3A9B1", marker="diamond")
