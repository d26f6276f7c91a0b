"""Two of every four weights kept, multiplied by sparse tensor cores: y = x (M o W)^T + b, a baseline on GPUs."""

from basis_search.families.sparse24.cost import cost
from basis_search.families.sparse24.examples import examples
from basis_search.families.sparse24.fit import fit
from basis_search.families.sparse24.forecast import forecast
from basis_search.families.sparse24.kernels import KERNELS
from basis_search.families.sparse24.space import Space, suggest
from basis_search.families.sparse24.spec import Spec
from basis_search.families.sparse24.style import STYLE

__all__ = ["FITS_ROWS", "KERNELS", "STYLE", "Space", "Spec", "cost", "examples", "fit", "forecast", "suggest"]

FITS_ROWS = False
