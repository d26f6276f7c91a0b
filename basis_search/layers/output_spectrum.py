"""How a layer's outputs spread: the eigenvalues of W C W^T over the outputs' mean square, C the inputs' covariance."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from basis_search.layers.layer import Layer

_known: weakref.WeakKeyDictionary[Layer, Tensor] = weakref.WeakKeyDictionary()


def covariance(layer: Layer) -> Tensor:
    """[in, in] of what an approximation gets wrong: about the mean where a bias can answer it, else about zero."""
    second = layer.second_moment
    if layer.bias is None:
        return second
    mean = layer.inputs.double().mean(0).to(second)
    return second - torch.outer(mean, mean)


def output_power(layer: Layer) -> float:
    """E ||W x||^2, the mean included: what an error is relative to."""
    weight = layer.weight.double()
    return float(((weight @ layer.second_moment) * weight).sum())


def output_energies(layer: Layer) -> Tensor:
    """Descending eigenvalues of W C W^T over `output_power`, [min(in, out)], float64; kept per layer.

    The sum from r on is the error of the best layer of rank r (Eckart and Young 1936); they sum to less than 1 where
    the inputs have a mean.
    """
    if layer not in _known:
        weight, spread = layer.weight.double(), covariance(layer)
        if layer.out_features < layer.in_features:
            product = weight @ spread @ weight.T
        else:  # the same eigenvalues but for zeros
            values, axes = torch.linalg.eigh(spread)
            root = axes * values.clamp_min(0).sqrt()
            product = root.T @ (weight.T @ weight) @ root
        energies = torch.linalg.eigvalsh(product).clamp_min(0).flip(0)
        power = output_power(layer)
        _known[layer] = energies / power if power > 0 else energies
    return _known[layer]


HELD = (0.5, 0.9, 0.99, 0.999)


def shape(layer: Layer) -> tuple[float, ...]:
    """Shares of the rank that hold a half, 90, 99 and 99.9 % of the energy: how alike two layers' spectra are."""
    held = output_energies(layer).cumsum(0)
    total = float(held[-1])
    return tuple(float((held < share * total).sum() + 1) / len(held) for share in HELD)


def tail(layer: Layer, rank: int) -> float:
    """Error of the best layer of that rank on the inputs that were seen."""
    return float(output_energies(layer)[rank:].sum())
