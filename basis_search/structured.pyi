from basis_search.replacement.structured_linear import *
