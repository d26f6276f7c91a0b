from basis_search.schemes.constructions.points import *
