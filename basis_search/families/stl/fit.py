"""Fit of Strassen-Tile parameters: exact schemes encode the layer's weight, others are fitted to its inputs."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from basis_search.errors import BadInput
from basis_search.families.protocol import Params
from basis_search.families.stl.adapt import adapt
from basis_search.families.stl.bases import bases
from basis_search.families.stl.basis_orders import best_order
from basis_search.families.stl.low_rank_part import fit_tiles_and_low_rank
from basis_search.families.stl.metric_equations import in_tiles
from basis_search.families.stl.normal_equations import TileProblem, pad
from basis_search.families.stl.spec import Spec
from basis_search.families.stl.tile_shape import Sides, sides
from basis_search.layers.layer import Layer
from basis_search.layers.ridge import fitting_metric, input_ridge


def fit(spec: Spec, layer: Layer) -> Params:
    """Encoded weights "weight" [r, in/k, out/m], bases "encode" and "decode", and "up", "down" and "bias" if any.

    An exact scheme encodes the weight and is exact. Otherwise the parameters, and the order of real bases, are fitted
    to the inputs' mean and covariance, in the layer's output metric if it has one. The covariance is shrunk towards its
    mean variance, the more the fewer samples there are, so that few samples and singular moments are allowed. Fewer
    samples than inputs raise a warning.

    Raises:
        BadInput: the low-rank part exceeds the layer's rank, or a coefficient exceeds the layer's dtype.
    """
    kept, layer = bases(spec), layer.on_device()
    weight = layer.weight.double()
    bias = None if layer.bias is None else layer.bias.double()
    E, D = kept.encode.to(weight.device), kept.decode.to(weight.device)
    low_rank = {}
    if kept.exact:
        encoded = encode_weight(kept.encode_weight.to(weight.device), weight, spec.sides)
    else:
        if layer.moment is None and len(layer.inputs) < layer.in_features:
            warnings.warn(
                f"stl: layer {layer.name!r} is fitted to {len(layer.inputs)} samples of {layer.in_features} inputs; "
                "their covariance is shrunk towards its mean variance, and more samples would lower the error",
                stacklevel=2,
            )
        mean, covariance = moments(layer)
        metric = fitting_metric(layer)
        E_W = kept.encode_weight.to(weight.device)

        def start(problem: TileProblem) -> tuple[Tensor, Tensor]:
            return (E, D) if kept.fixed else best_order(problem, E, E_W, D)

        if spec.waist:
            if spec.waist > min(weight.shape):
                raise BadInput(
                    f"stl: waist is {spec.waist}, but layer {layer.name!r} is {layer.in_features} -> "
                    f"{layer.out_features} and has rank {min(weight.shape)} at most; use a smaller waist"
                )
            problem, encode, decode, encoded, low_rank["up"], low_rank["down"] = fit_tiles_and_low_rank(
                spec.sides, spec.waist, spec.sweeps, start, weight, (mean, covariance), bias is not None, metric
            )
        else:
            padded = None if metric is None else in_tiles(metric, spec.sides[2])
            problem = TileProblem.of(spec.sides, weight, mean, covariance, bias is not None, padded)
            encode, decode, encoded = adapt(problem, *start(problem), spec.sweeps)
        E, D = encode, decode
        bias = None if bias is None else bias + problem.shift(E, D, encoded)[: len(weight)]
    params = {"weight": encoded, "encode": E, "decode": D, **low_rank}
    if bias is not None:
        params["bias"] = bias
    largest = float(torch.stack([tensor.abs().max() for tensor in params.values()]).max())
    if largest > torch.finfo(layer.dtype).max:
        raise BadInput(
            f"stl: layer {layer.name!r} would have a coefficient of {largest:.3g}, but the largest of {layer.dtype} is "
            f"{torch.finfo(layer.dtype).max:.3g}; scale the layer or use bfloat16"
        )
    params = {name: tensor.to(layer.dtype).contiguous() for name, tensor in params.items()}
    params["out_features"] = torch.full((), layer.out_features, device=layer.device)
    return params


def encode_weight(basis: Tensor, weight: Tensor, tile: int | Sides) -> Tensor:
    """E_W vec W_KJ for each k x m tile of the transposed weight: weight [out, in] -> [r, in/k, out/m]."""
    _, k, m = sides(tile)
    padded = pad(weight, m, k).T
    tiles = padded.reshape(len(padded) // k, k, -1, m)  # [K, p, J, q]
    return torch.einsum("lpq,KpJq->lKJ", basis.view(-1, k, m), tiles)


def moments(layer: Layer) -> tuple[Tensor, Tensor]:
    """Mean [in] and covariance [in, in] of the inputs, float64, the covariance shrunk to a multiple of the identity.

    The weight of the identity is that of Oracle Approximating Shrinkage (Chen, Wiesel, Eldar, Hero, "Shrinkage
    algorithms for MMSE covariance estimation", 2010): near 1 for few samples, near 0 for many. Layers with an output
    metric have an `input_ridge` in its place.
    """
    n, k = layer.inputs.shape
    mean = layer.inputs.double().mean(dim=0)
    second = layer.second_moment.to(mean.device)
    if layer.moment is not None:
        mean = _consistent(mean, second)
    S = second - torch.outer(mean, mean)
    trace, square, level = torch.stack([S.trace(), (S * S).sum(), mean.square().mean()]).tolist()
    if trace <= 0 or n < 2:
        # All samples are equal: assume an isotropic covariance of the mean's size.
        return mean, max(level, 1e-30) * torch.eye(k, dtype=torch.float64, device=mean.device)
    ridge = input_ridge(layer)
    if ridge is not None:
        S.diagonal().add_(ridge * trace / k)
        return mean, S
    excess = square - trace**2 / k
    share = ((1 - 2 / k) * square + trace**2) / ((n + 1 - 2 / k) * excess) if excess > 0 else 1.0
    share = min(1.0, max(share, 1e-9))
    covariance = (1 - share) * S
    covariance.diagonal().add_(share * trace / k)
    return mean, covariance


def _consistent(mean: Tensor, second: Tensor) -> Tensor:
    """The mean, scaled down where needed so that `second` - mean mean^T has no negative eigenvalue.

    A second moment over other rows than the mean's may contradict it: for moments of one distribution
    mean^T second^-1 mean <= 1.
    """
    raised = second.clone()
    raised.diagonal().add_(1e-12 * second.trace() / len(mean) + 1e-300)
    excess = mean @ torch.linalg.solve(raised, mean)
    scaled: Tensor = mean / excess.clamp_min(1.0).sqrt()
    return scaled
