from basis_search.schemes.flips.format_graph import *
