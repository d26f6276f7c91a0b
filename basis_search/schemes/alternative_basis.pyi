from basis_search.schemes.programs.alternative_basis import *
