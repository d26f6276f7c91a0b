"""The rank-r layer of least error on its inputs: U = leading left singular vectors of W S^(1/2), D = U^T W.

For E||(W - M) x||^2 = ||(W - M) S^(1/2)||_F^2, with S the second moment of x, the best M of rank r is U U^T W
(Eckart and Young 1936, applied to W S^(1/2)). No inverse of S is taken, so S may be singular. With a bias, the mean
m of x is reproduced exactly, b' = b + (W - M) m, and S is the covariance: the error can only fall.

In an output metric G = R R^T the least of tr(G (W - M) S (W - M)^T) is that of R^T M, so M = R^-T U U^T R^T W with the
leading left singular vectors U of R^T W S^(1/2).
"""

import weakref

import torch
from torch import Tensor

from basis_search.errors import BadInput
from basis_search.families.lowrank.spec import Spec
from basis_search.families.protocol import Params
from basis_search.layers.input_mean import answered_mean, raised
from basis_search.layers.layer import Layer
from basis_search.layers.principal_directions import best_factors, width
from basis_search.layers.ridge import fitting_metric, input_ridge

_directions: weakref.WeakKeyDictionary[Layer, dict[int, tuple[Tensor, Tensor, Tensor]]] = weakref.WeakKeyDictionary()


def directions(layer: Layer, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """`best_factors` P, Q [out, at least rank] of the layer, and the mean of `answered_mean`; M = P Q^T W.

    Cached per layer: a search needs them for many ranks.
    """
    kept = _directions.setdefault(layer, {})
    columns = width(rank, layer.weight)
    if columns not in kept:
        mean = answered_mean(layer)
        spread = raised(layer.second_moment - torch.outer(mean, mean), layer, input_ridge(layer) or 0.0)
        left, right = best_factors(layer.weight.double(), spread, rank, fitting_metric(layer))
        kept[columns] = left, right, mean
    return kept[columns]


def fit(spec: Spec, layer: Layer) -> Params:
    """ "up" [out, rank], its columns of length 1 and without an output metric orthonormal, "down" [rank, in], "bias".

    Raises:
        BadInput: the rank is above min(in, out).
    """
    limit = min(layer.in_features, layer.out_features)
    if spec.rank > limit:
        raise BadInput(
            f"lowrank: rank is {spec.rank}, but layer {layer.name!r} is {layer.out_features} x {layer.in_features} and "
            f"has no more than {limit}; give a rank of at most {limit}"
        )
    layer = layer.on_device()
    left, right, mean = directions(layer, spec.rank)
    up = left[:, : spec.rank]
    weight = layer.weight.double()
    down = right[:, : spec.rank].T @ weight
    params = {"up": up.contiguous().to(layer.dtype), "down": down.to(layer.dtype)}
    if layer.bias is not None:
        params["bias"] = (layer.bias.double() + weight @ mean - up @ (down @ mean)).to(layer.dtype)
    return params
