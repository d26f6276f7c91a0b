"""The dense layer's kernels: the reference, and torch's own linear."""

from torch import Tensor

from basis_search.families.dense.reference import reference
from basis_search.families.dense.spec import Spec
from basis_search.families.protocol import (
    Kernel,
    Params,
    accept,
    keep,
    linear,
    reference_kernel,
)


def _torch(spec: Spec, params: Params, x: Tensor) -> Tensor:
    return linear(x, params["weight"], params.get("bias"))


KERNELS = (
    reference_kernel(reference),
    Kernel("torch", _torch, keep, accept, differentiable=True),
)
