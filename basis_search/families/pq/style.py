"""Colours and marker of product quantisation in reports, of Okabe and Ito's palette."""

from basis_search.families.protocol import Style

STYLE = Style(light="#D55E00", dark="#FF8A4C", marker="cross")
