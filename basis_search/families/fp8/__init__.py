"""Weights and inputs in 8-bit floats (e4m3), multiplied by tensor cores: y = s t q w^T + b, a baseline on GPUs."""

from basis_search.families.fp8.cost import cost
from basis_search.families.fp8.examples import examples
from basis_search.families.fp8.fit import fit
from basis_search.families.fp8.forecast import forecast
from basis_search.families.fp8.kernels import KERNELS
from basis_search.families.fp8.space import Space, suggest
from basis_search.families.fp8.spec import Spec
from basis_search.families.fp8.style import STYLE

__all__ = ["FITS_ROWS", "KERNELS", "STYLE", "Space", "Spec", "cost", "examples", "fit", "forecast", "suggest"]

FITS_ROWS = False
