"""Exact bilinear algorithms: derive, verify, discover, shorten."""

from basis_search.schemes.actions import tensor_product
from basis_search.schemes.approximation import approximate
from basis_search.schemes.cheaper import fewest_additions
from basis_search.schemes.constructions import (
    composition,
    karatsuba,
    laderman,
    standard,
    strassen,
    toom_cook,
    winograd,
    winograd_convolution,
)
from basis_search.schemes.convolution import ConvolutionScheme
from basis_search.schemes.discovery import discover
from basis_search.schemes.files import load, save
from basis_search.schemes.flip_graph import neighbourhood
from basis_search.schemes.found import Catalogue, catalogue
from basis_search.schemes.graph_files import save_graph
from basis_search.schemes.lifting import lift
from basis_search.schemes.numerical import discover_numerically
from basis_search.schemes.scheme import BilinearScheme
from basis_search.schemes.searching import Search
from basis_search.schemes.table import Table, discover_table
from basis_search.schemes.ternary import towards_ternary

__all__ = [
    "BilinearScheme",
    "Catalogue",
    "ConvolutionScheme",
    "Search",
    "Table",
    "approximate",
    "catalogue",
    "composition",
    "discover",
    "discover_numerically",
    "discover_table",
    "fewest_additions",
    "karatsuba",
    "laderman",
    "lift",
    "load",
    "neighbourhood",
    "save",
    "save_graph",
    "standard",
    "strassen",
    "tensor_product",
    "toom_cook",
    "towards_ternary",
    "winograd",
    "winograd_convolution",
]
