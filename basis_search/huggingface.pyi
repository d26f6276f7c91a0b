from basis_search.replacement.huggingface import *
