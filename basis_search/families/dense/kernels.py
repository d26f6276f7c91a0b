"""The dense layer's kernels: the reference, and torch's own linear."""

import torch.nn.functional as F
from torch import Tensor

from basis_search.families.dense.reference import reference
from basis_search.families.dense.spec import Spec
from basis_search.family import Kernel, Params
from basis_search.layer import LayerLike


def _keep(spec: Spec, params: Params) -> Params:
    return params


def _accept(spec: Spec, layer: LayerLike) -> None:
    return None


def _reference(spec: Spec, params: Params, x: Tensor) -> Tensor:
    return reference(spec, params, x).to(x.dtype)


def _torch(spec: Spec, params: Params, x: Tensor) -> Tensor:
    return F.linear(x, params["weight"], params.get("bias"))


KERNELS = (
    Kernel("reference", _reference, _keep, _accept, differentiable=True),
    Kernel("torch", _torch, _keep, _accept, differentiable=True),
)
