"""Exact bilinear algorithms: derive, verify, discover, shorten."""

from basis_search.schemes.actions import tensor_product
from basis_search.schemes.approximation import approximate
from basis_search.schemes.constructions import (
    compose,
    karatsuba,
    laderman,
    standard,
    strassen,
    toom_cook,
    winograd,
    winograd_convolution,
)
from basis_search.schemes.convolution import ConvolutionScheme
from basis_search.schemes.files import load, save
from basis_search.schemes.found import Catalogue, catalogue
from basis_search.schemes.scheme import BilinearScheme

__all__ = [
    "BilinearScheme",
    "Catalogue",
    "ConvolutionScheme",
    "approximate",
    "catalogue",
    "compose",
    "karatsuba",
    "laderman",
    "load",
    "save",
    "standard",
    "strassen",
    "tensor_product",
    "toom_cook",
    "winograd",
    "winograd_convolution",
]
