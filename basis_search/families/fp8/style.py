"""Colours and marker of fp8 layers in reports: slate, between the greys of the baselines."""

from basis_search.families.protocol import Style

STYLE = Style(light="#56657F", dark="#8FA1C0", marker="plus")
