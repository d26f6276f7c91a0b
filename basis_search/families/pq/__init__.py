"""Product quantisation: y = sum_c T[c, code_c(x)], codes of 4 bits, tables of what each code contributes.

The inputs of a layer are cut into C groups of columns; each group's values are replaced by one of 16 prototypes, whose
product with the weights is known beforehand. No multiplication by a weight is left: a row costs 4 C compares, an output
C look-ups.
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
