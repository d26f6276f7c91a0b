"""Product quantisation: y = sum_c T[c, code_c(x)], with 4-bit codes and a table of each code's contribution.

The inputs are split into C groups of columns; each group is replaced by one of 16 prototypes, whose product with the
weights is computed in advance. A row costs 4 C comparisons, an output C look-ups, without any multiplication.
"""

from basis_search.families.pq.codebook import Codebook
from basis_search.families.pq.cost import cost
from basis_search.families.pq.examples import examples
from basis_search.families.pq.fit import fit
from basis_search.families.pq.forecast import forecast
from basis_search.families.pq.kernels import KERNELS
from basis_search.families.pq.space import Space, suggest
from basis_search.families.pq.spec import Spec
from basis_search.families.pq.style import STYLE
from basis_search.families.pq.training import TrainableProduct

__all__ = [
    "FITS_ROWS",
    "KERNELS",
    "STYLE",
    "Codebook",
    "Space",
    "Spec",
    "TrainableProduct",
    "cost",
    "examples",
    "fit",
    "forecast",
    "suggest",
]

FITS_ROWS = True
