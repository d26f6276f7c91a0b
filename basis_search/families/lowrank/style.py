"""Colours and marker of low-rank layers in reports, of Okabe and Ito's palette."""

from basis_search.families.protocol import Style

STYLE = Style(light="#E69F00", dark="#F0B429", marker="triangle")
