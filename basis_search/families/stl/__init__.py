"""Strassen-Tile layers, Y_IJ = D sum_K (E X_IK) * w_KJ: tiles multiplied in the bases of a rank-r bilinear scheme."""

from basis_search.families.stl.cost import cost
from basis_search.families.stl.examples import examples
from basis_search.families.stl.fit import fit
from basis_search.families.stl.forecast import forecast
from basis_search.families.stl.kernels import KERNELS
from basis_search.families.stl.shared_bases import fit_group
from basis_search.families.stl.space import Space, suggest
from basis_search.families.stl.spec import Spec
from basis_search.families.stl.style import STYLE

__all__ = [
    "FITS_ROWS",
    "KERNELS",
    "STYLE",
    "Space",
    "Spec",
    "cost",
    "examples",
    "fit",
    "fit_group",
    "forecast",
    "suggest",
]

FITS_ROWS = False
