"""y = (x D^T) U^T + b in float64, with the factors D = "down" [rank, in] and U = "up" [out, rank]."""

from torch import Tensor

from basis_search.families.lowrank.spec import Spec
from basis_search.family import Params


def reference(spec: Spec, params: Params, x: Tensor) -> Tensor:
    """x [..., in] -> y [..., out], float64."""
    y = x.double() @ params["down"].double().T @ params["up"].double().T
    return y + params["bias"].double() if "bias" in params else y
