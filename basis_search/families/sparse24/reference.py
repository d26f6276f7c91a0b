"""y = x S^T + b in float64, S with two values in each group of four columns."""

from __future__ import annotations

from torch import Tensor

from basis_search.families.protocol import Params
from basis_search.families.sparse24.layout import expand
from basis_search.families.sparse24.spec import Spec


def reference(spec: Spec, params: Params, x: Tensor) -> Tensor:
    """x [..., in] -> y [..., out], float64."""
    weight = expand(params["values"].double(), params["index"])[:, : x.shape[-1]]
    y = x.double() @ weight.T
    return y + params["bias"].double() if "bias" in params else y
