"""y = (x D^T) U^T + b in float64, with the factors D = "down" [rank, in] and U = "up" [out, rank]."""

from torch import Tensor

from basis_search.errors import BadInput
from basis_search.families.lowrank.spec import Spec
from basis_search.families.protocol import Params


def reference(spec: Spec, params: Params, x: Tensor) -> Tensor:
    """x [..., in] -> y [..., out], float64."""
    if (params["up"].shape[1], params["down"].shape[0]) != (spec.rank, spec.rank):
        raise BadInput(f"the factors have rank {params['down'].shape[0]}, but the spec says {spec.rank}")
    y = x.double() @ params["down"].double().T @ params["up"].double().T
    return y + params["bias"].double() if "bias" in params else y
