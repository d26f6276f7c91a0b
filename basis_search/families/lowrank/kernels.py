"""The low-rank layer's kernels: the reference, and two of torch's linears."""

import torch.nn.functional as F
from torch import Tensor

from basis_search.families.lowrank.reference import reference
from basis_search.families.lowrank.spec import Spec
from basis_search.family import Kernel, Params
from basis_search.layer import LayerLike


def _keep(spec: Spec, params: Params) -> Params:
    return params


def _accept(spec: Spec, layer: LayerLike) -> None:
    return None


def _reference(spec: Spec, params: Params, x: Tensor) -> Tensor:
    return reference(spec, params, x).to(x.dtype)


def _torch(spec: Spec, params: Params, x: Tensor) -> Tensor:
    return F.linear(F.linear(x, params["down"]), params["up"], params.get("bias"))


KERNELS = (
    Kernel("reference", _reference, _keep, _accept, differentiable=True),
    Kernel("torch", _torch, _keep, _accept, differentiable=True),
)
