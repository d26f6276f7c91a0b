from basis_search.workers.evaluation_log import *
