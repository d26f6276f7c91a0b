"""y = x W^T + b in float64."""

from torch import Tensor

from basis_search.families.dense.spec import Spec
from basis_search.families.protocol import Params


def reference(spec: Spec, params: Params, x: Tensor) -> Tensor:
    """x [..., in] -> y [..., out], float64."""
    y = x.double() @ params["weight"].double().T
    return y + params["bias"].double() if "bias" in params else y
