"""Colours and marker of Strassen-Tile layers in reports, of Okabe and Ito's palette."""

from basis_search.families.protocol import Style

STYLE = Style(light="#0072B2", dark="#4BA3E3", marker="circle")
