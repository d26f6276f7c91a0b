"""Colours and marker of the dense layer in reports: the colour of the text."""

from basis_search.families.protocol import Style

STYLE = Style(light="#1F2933", dark="#E6EAEF", marker="star")
