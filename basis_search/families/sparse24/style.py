"""Colours and marker of 2:4-sparse layers in reports: brown."""

from basis_search.families.protocol import Style

STYLE = Style(light="#8C5E3C", dark="#C79A76", marker="triangle-down")
