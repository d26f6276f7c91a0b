"""Weights in 8 or 4 bits, inputs as they are, for few rows: y = x (s (q - z))^T + b, a baseline on GPUs."""

from basis_search.families.weight_only.cost import cost
from basis_search.families.weight_only.examples import examples
from basis_search.families.weight_only.fit import fit
from basis_search.families.weight_only.forecast import forecast
from basis_search.families.weight_only.kernels import KERNELS
from basis_search.families.weight_only.space import Space, suggest
from basis_search.families.weight_only.spec import Spec
from basis_search.families.weight_only.style import STYLE

__all__ = ["FITS_ROWS", "KERNELS", "STYLE", "Space", "Spec", "cost", "examples", "fit", "forecast", "suggest"]

FITS_ROWS = False
