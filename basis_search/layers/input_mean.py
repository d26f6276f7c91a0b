"""The mean of a layer's inputs that its bias accounts for, consistent with a second moment over other rows."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from basis_search.layers.layer import Layer

UNSEEN_ENERGY = 1e-10
"""Energy, as a share of the mean, given to directions that no input has: the weight alone orders them."""

_known: weakref.WeakKeyDictionary[Layer, Tensor] = weakref.WeakKeyDictionary()


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
    if layer not in _known:
        # No value is read. Rounding of a moment in float32 may leave it without a root but for a larger ridge.
        (root, info), (other, _) = (
            torch.linalg.cholesky_ex(raised(layer.second_moment, layer, r)) for r in (0.0, 1e-5)
        )
        along = torch.linalg.solve_triangular(torch.where(info == 0, root, other), mean[:, None], upper=False)
        length = along.square().sum()  # m S^-1 m: at most 1, apart from noise
        kept = (1 - k / len(layer.inputs) / length).clamp_min(0)
        _known[layer] = mean * torch.where(length > 0, kept, 1.0)
    return _known[layer]


def raised(moment: Tensor, layer: Layer, ridge: float = 0.0) -> Tensor:
    """The moment [in, in] with `UNSEEN_ENERGY` more in every direction; the identity for inputs of zeros.

    Args:
        ridge: added as well, relative to the mean of the moment's diagonal.
    """
    mean = layer.second_moment.trace() / layer.in_features
    raised = moment.clone()
    raised.diagonal().add_(torch.where(mean > 0, UNSEEN_ENERGY * mean, 1.0) + ridge * moment.trace() / len(moment))
    return raised
