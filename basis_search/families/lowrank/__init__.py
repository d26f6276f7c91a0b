"""Low-rank layers, y = U (D x) + b, by activation-aware truncated SVD: the replacement that most users try first."""

from basis_search.families.lowrank.cost import cost
from basis_search.families.lowrank.examples import examples
from basis_search.families.lowrank.fit import fit
from basis_search.families.lowrank.forecast import forecast
from basis_search.families.lowrank.kernels import KERNELS
from basis_search.families.lowrank.space import Space, suggest
from basis_search.families.lowrank.spec import Spec
from basis_search.families.lowrank.style import STYLE

__all__ = ["FITS_ROWS", "KERNELS", "STYLE", "Space", "Spec", "cost", "examples", "fit", "forecast", "suggest"]

FITS_ROWS = False
