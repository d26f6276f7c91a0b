"""A layer through a narrow waist, y = U (D x) + b: activation-aware truncated SVD, what most users would try first."""

from basis_search.families.lowrank.cost import cost
from basis_search.families.lowrank.fit import fit
from basis_search.families.lowrank.forecast import forecast
from basis_search.families.lowrank.kernels import KERNELS
from basis_search.families.lowrank.space import Space, suggest
from basis_search.families.lowrank.spec import Spec

__all__ = ["FITS_ROWS", "KERNELS", "Space", "Spec", "cost", "fit", "forecast", "suggest"]

FITS_ROWS = False
