"""Int8 weights and inputs through torch's quantised linear: y = s t (q - z) w^T + b, a baseline."""

from basis_search.families.int8.cost import cost
from basis_search.families.int8.examples import examples
from basis_search.families.int8.fit import fit
from basis_search.families.int8.forecast import forecast
from basis_search.families.int8.kernels import KERNELS
from basis_search.families.int8.space import Space, best_spec, suggest
from basis_search.families.int8.spec import Spec
from basis_search.families.int8.style import STYLE

__all__ = [
    "FITS_ROWS",
    "KERNELS",
    "STYLE",
    "Space",
    "Spec",
    "best_spec",
    "cost",
    "examples",
    "fit",
    "forecast",
    "suggest",
]

FITS_ROWS = False
