"""Exact bilinear algorithms: derive, verify, discover, shorten."""

from basis_search.schemes.actions import tensor_product
from basis_search.schemes.constructions import standard, strassen, winograd
from basis_search.schemes.scheme import BilinearScheme

__all__ = ["BilinearScheme", "standard", "strassen", "tensor_product", "winograd"]
