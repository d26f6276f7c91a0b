"""The low-rank kernels: the reference, and two calls of torch's linear."""

from torch import Tensor

from basis_search.families.lowrank.reference import reference
from basis_search.families.lowrank.spec import Spec
from basis_search.families.protocol import (
    Kernel,
    Params,
    accept,
    keep,
    linear,
    reference_kernel,
)


def _torch(spec: Spec, params: Params, x: Tensor) -> Tensor:
    return linear(linear(x, params["down"]), params["up"], params.get("bias"))


KERNELS = (
    reference_kernel(reference),
    Kernel("torch", _torch, keep, accept, differentiable=True),
)
