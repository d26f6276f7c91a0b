"""Known algorithms derived and proved with sympy, and interpolation points with small rounding errors."""

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
