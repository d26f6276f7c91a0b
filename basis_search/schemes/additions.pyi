from basis_search.schemes.programs.additions import *
