from basis_search.schemes.algebra.transforms import *
