"""Kronecker-sparse chains, W ~ K_1 K_2 ... K_L with K_l supported on I_a (x) 1_{b x c} (x) I_d."""

from basis_search.families.kronecker.chain_choice import Choice, MeasuredCosts, best_fusion, choose_chain
from basis_search.families.kronecker.chain_enumeration import Chains, cheapest_chains, monarch_chains
from basis_search.families.kronecker.cost import cost
from basis_search.families.kronecker.examples import examples
from basis_search.families.kronecker.factorization import Factorization, factorize
from basis_search.families.kronecker.fit import fit
from basis_search.families.kronecker.forecast import forecast
from basis_search.families.kronecker.initialization import initialize
from basis_search.families.kronecker.kernels import KERNELS
from basis_search.families.kronecker.multiplication import multiply
from basis_search.families.kronecker.patterns import KroneckerChain, KroneckerPattern
from basis_search.families.kronecker.space import Space, suggest
from basis_search.families.kronecker.spec import Spec
from basis_search.families.kronecker.style import STYLE

__all__ = [
    "FITS_ROWS",
    "KERNELS",
    "STYLE",
    "Chains",
    "Choice",
    "Factorization",
    "KroneckerChain",
    "KroneckerPattern",
    "MeasuredCosts",
    "Space",
    "Spec",
    "best_fusion",
    "cheapest_chains",
    "choose_chain",
    "cost",
    "examples",
    "factorize",
    "fit",
    "forecast",
    "initialize",
    "monarch_chains",
    "multiply",
    "suggest",
]

FITS_ROWS = False
