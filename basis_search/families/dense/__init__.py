"""The unchanged layer, y = x W^T + b: the baseline of every other family, and the smallest example of a family."""

from basis_search.families.dense.cost import cost
from basis_search.families.dense.examples import examples
from basis_search.families.dense.fit import fit
from basis_search.families.dense.forecast import forecast
from basis_search.families.dense.kernels import KERNELS
from basis_search.families.dense.space import Space, suggest
from basis_search.families.dense.spec import Spec
from basis_search.families.dense.style import STYLE

__all__ = ["FITS_ROWS", "KERNELS", "STYLE", "Space", "Spec", "cost", "examples", "fit", "forecast", "suggest"]

FITS_ROWS = False
