"""Colours and marker of weight-only quantised layers in reports: olive."""

from basis_search.families.protocol import Style

STYLE = Style(light="#6E7B3A", dark="#AEBB74", marker="triangle-left")
