"""Exact bilinear algorithms: derive, verify, discover, shorten."""

from basis_search.schemes.algebra.convolution import ConvolutionScheme
from basis_search.schemes.algebra.scheme import BilinearScheme
from basis_search.schemes.algebra.transforms import tensor_product
from basis_search.schemes.constructions.derived import (
    composition,
    karatsuba,
    laderman,
    standard,
    strassen,
    toom_cook,
    winograd,
    winograd_convolution,
)
from basis_search.schemes.files.graph_files import save_graph
from basis_search.schemes.files.load_save import load, save
from basis_search.schemes.flips.all_formats import Table, discover_table
from basis_search.schemes.flips.discover import discover
from basis_search.schemes.flips.fewest_additions import fewest_additions
from basis_search.schemes.flips.flip_graph import neighbourhood
from basis_search.schemes.flips.lifting import lift
from basis_search.schemes.flips.search import Search
from basis_search.schemes.flips.ternary import towards_ternary
from basis_search.schemes.library.loader import Catalogue, catalogue
from basis_search.schemes.numerical.approximation import approximate
from basis_search.schemes.numerical.discover import discover_numerically

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
