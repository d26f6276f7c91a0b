"""The best rank-r layer for the inputs it sees: U = the leading left singular vectors of W S^(1/2), D = U^T W.

For E||(W - M) x||^2 = ||(W - M) S^(1/2)||_F^2, with S the second moment of x, the best M of rank r is U U^T W
(Eckart and Young 1936, applied to W S^(1/2)). No inverse of S is taken, so S may be singular. With a bias, the mean
m of x is answered exactly, b' = b + (W - M) m, and S is the covariance: the error can only fall.
"""

import weakref

import torch
from torch import Tensor

from basis_search.errors import BadInput
from basis_search.families.lowrank.spec import Spec
from basis_search.family import Params
from basis_search.layer import Layer

# Directions that the inputs never take are ordered by the weight alone, this far below the others in energy.
UNSEEN = 1e-10

_directions: weakref.WeakKeyDictionary[Layer, tuple[Tensor, Tensor]] = weakref.WeakKeyDictionary()


def directions(layer: Layer) -> tuple[Tensor, Tensor]:
    """Left singular vectors of W S^(1/2) [out, min(in, out)], and the mean that the bias answers [in]; kept per layer,
    since every rank of a search wants them."""
    if layer not in _directions:
        mean = (
            layer.inputs.double().mean(0)
            if layer.bias is not None
            else layer.inputs.new_zeros(layer.in_features, dtype=torch.float64)
        )
        moment = layer.second_moment - torch.outer(mean, mean)
        energy, axes = torch.linalg.eigh(moment)
        floor = UNSEEN * float(layer.second_moment.trace()) / layer.in_features or 1.0
        root = axes * energy.clamp_min(floor).sqrt()  # [in, in], S^(1/2) up to a rotation on its right
        left = torch.linalg.svd(layer.weight.double() @ root, full_matrices=False).U
        _directions[layer] = left, mean
    return _directions[layer]


def fit(spec: Spec, layer: Layer) -> Params:
    """ "up" [out, rank], its columns orthonormal, "down" [rank, in] and "bias" [out].

    Raises:
        BadInput: the rank is above min(in, out).
    """
    limit = min(layer.in_features, layer.out_features)
    if spec.rank > limit:
        raise BadInput(
            f"lowrank: rank is {spec.rank}, but layer {layer.name!r} is {layer.out_features} x {layer.in_features} and "
            f"has no more than {limit}; give a rank of at most {limit}"
        )
    left, mean = directions(layer)
    up = left[:, : spec.rank]
    weight = layer.weight.double()
    down = up.T @ weight
    params = {"up": up.contiguous().to(layer.dtype), "down": down.to(layer.dtype)}
    if layer.bias is not None:
        params["bias"] = (layer.bias.double() + (weight - up @ down) @ mean).to(layer.dtype)
    return params
