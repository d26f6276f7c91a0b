from basis_search.replacement.torch_operator import *
