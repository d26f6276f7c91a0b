"""Strassen-Tile layers, Y_IJ = D sum_K (E X_IK) * w_KJ: tiles multiplied in the bases of a rank-r bilinear scheme."""

from basis_search.families.stl.cost import cost
from basis_search.families.stl.fit import fit
from basis_search.families.stl.forecast import forecast
from basis_search.families.stl.kernels import KERNELS
from basis_search.families.stl.shared_bases import fit_group
from basis_search.families.stl.space import Space, suggest
from basis_search.families.stl.spec import Spec

__all__ = ["FITS_ROWS", "KERNELS", "Space", "Spec", "cost", "fit", "fit_group", "forecast", "suggest"]

FITS_ROWS = False
