"""Known algorithms derived and proved with sympy, and interpolation points that round little."""

from basis_search.schemes.constructions.derived import (
    choose_points,
    composition,
    derive,
    karatsuba,
    laderman,
    prove,
    standard,
    strassen,
    toom_cook,
    whole_data_side,
    winograd,
    winograd_convolution,
)

__all__ = [
    "choose_points",
    "composition",
    "derive",
    "karatsuba",
    "laderman",
    "prove",
    "standard",
    "strassen",
    "toom_cook",
    "whole_data_side",
    "winograd",
    "winograd_convolution",
]
