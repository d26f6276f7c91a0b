from basis_search.schemes.programs.emit import *
