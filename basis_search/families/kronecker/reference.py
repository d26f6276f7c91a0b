"""Reference in float64: y = K_1 (K_2 (... (K_L x))) + b, one einsum per factor."""

import torch
from torch import Tensor

from basis_search.errors import BadInput
from basis_search.families.kronecker.spec import Spec
from basis_search.families.protocol import Params


def factors_of(spec: Spec, params: Params) -> list[Tensor]:
    """The stored factors [a, b, c, d], leftmost first."""
    return [params[f"factor_{index}"] for index in range(len(spec.parsed))]


def out_features_of(spec: Spec, params: Params) -> int:
    """Outputs of the layer; "out_features" is stored only where the chain is padded."""
    return int(params["out_features"]) if "out_features" in params else spec.parsed.shape[0]


def reference(spec: Spec, params: Params, x: Tensor) -> Tensor:
    """x [..., in] -> y [..., out], float64."""
    columns = spec.parsed.shape[1]
    y = torch.nn.functional.pad(x.double(), (0, columns - x.shape[-1]))  # [..., N]
    for pattern, w in reversed(list(zip(spec.parsed, factors_of(spec, params), strict=True))):
        a, b, c, d = pattern.a, pattern.b, pattern.c, pattern.d
        if w.shape != (a, b, c, d):
            raise BadInput(f"a factor has shape {list(w.shape)}, but the spec's is {[a, b, c, d]}")
        blocks = y.reshape(*x.shape[:-1], a, c, d)
        y = torch.einsum("...ikl,ijkl->...ijl", blocks, w.double()).flatten(-3)
    y = y[..., : out_features_of(spec, params)]
    return y + params["bias"].double() if "bias" in params else y
