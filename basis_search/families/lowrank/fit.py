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
from basis_search.layers.layer import Layer
from basis_search.layers.principal_directions import principal_directions, width
from basis_search.layers.ridge import fitting_metric, input_ridge

UNSEEN_ENERGY = 1e-10
"""Energy, as a share of the mean, given to directions that no input has: the weight alone orders them."""

_directions: weakref.WeakKeyDictionary[Layer, dict[int, tuple[Tensor, Tensor, Tensor]]] = weakref.WeakKeyDictionary()


def answered_mean(layer: Layer) -> Tensor:
    """The mean [in] of the inputs that the bias accounts for; zero without a bias.

    Where the moment S comes from more rows than the n in `layer.inputs`, their mean differs from that of S by noise of
    about in / n in the metric of S^-1, and S - m m^T would remove real energy: the mean is shrunk towards zero by that
    amount (James and Stein 1961).
    """
    k = layer.in_features
    if layer.bias is None:
        return layer.weight.new_zeros(k, dtype=torch.float64)
    mean = layer.inputs.double().mean(0)
    if layer.moment is None:
        return mean
    length = mean @ torch.linalg.solve(_raised(layer.second_moment, layer), mean)  # at most 1, apart from noise
    kept = (1 - k / len(layer.inputs) / length).clamp_min(0)
    return mean * torch.where(length > 0, kept, 1.0)


def directions(layer: Layer, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Columns "up" P [out, at least rank], Q [out, at least rank] and the mean of `answered_mean`: M = P Q^T W.

    P and Q are the left singular vectors U of W S^(1/2), or in an output metric G = R R^T P = R^-T U and Q = R U = G P,
    the columns of P scaled to length 1. Cached per layer: a search needs them for many ranks.
    """
    kept = _directions.setdefault(layer, {})
    columns = width(rank, layer.weight)
    if columns not in kept:
        mean = answered_mean(layer)
        spread = _raised(layer.second_moment - torch.outer(mean, mean), layer, input_ridge(layer) or 0.0)
        metric, weight = fitting_metric(layer), layer.weight.double()
        if metric is None:
            left = right = principal_directions(weight, spread, rank)
        else:
            root = metric.root(0.0)
            left = root.solve_transposed(principal_directions(root.transposed_times(weight), spread, rank))
            length = left.norm(dim=0)
            left = left / torch.where(length > 0, length, 1.0)
            right = metric.times(left) * length.square()
        kept[columns] = left, right, mean
    return kept[columns]


def _raised(moment: Tensor, layer: Layer, ridge: float = 0.0) -> Tensor:
    """The moment [in, in] with `UNSEEN_ENERGY` more in every direction; the identity for inputs of zeros.

    Args:
        ridge: added as well, relative to the mean of the moment's diagonal.
    """
    mean = layer.second_moment.trace() / layer.in_features
    raised = moment.clone()
    raised.diagonal().add_(torch.where(mean > 0, UNSEEN_ENERGY * mean, 1.0) + ridge * moment.trace() / len(moment))
    return raised


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
