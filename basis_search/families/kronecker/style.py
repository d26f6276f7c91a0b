"""Colours and marker of Kronecker-sparse chains in reports, of Okabe and Ito's palette."""

from basis_search.families.protocol import Style

STYLE = Style(light="#009E73", dark="#2CC295", marker="square")
