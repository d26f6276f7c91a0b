"""Spectrum of a layer's outputs: the eigenvalues of W C W^T over E ||W x||^2, C the covariance of the inputs."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from basis_search.layers.layer import Layer

_known: weakref.WeakKeyDictionary[Layer, Tensor] = weakref.WeakKeyDictionary()


def covariance(layer: Layer) -> Tensor:
    """[in, in] second moment of the inputs, about their mean if the layer has a bias to absorb it, else about zero."""
    second = layer.second_moment
    if layer.bias is None:
        return second
    mean = layer.inputs.double().mean(0).to(second)
    return second - torch.outer(mean, mean)


def output_power(layer: Layer) -> float:
    """E ||W x||^2 with the mean: the denominator of relative errors."""
    weight = layer.weight.double()
    return float(((weight @ layer.second_moment) * weight).sum())


def output_energies(layer: Layer) -> Tensor:
    """Descending eigenvalues of W C W^T over `output_power`, [min(in, out)], float64; cached by layer.

    The sum from r on is the error of the best layer of rank r (Eckart and Young 1936); they sum to less than 1 where
    the inputs' mean is not zero.
    """
    if layer not in _known:
        weight, spread = layer.weight.double(), covariance(layer)
        if layer.out_features < layer.in_features:
            product = weight @ spread @ weight.T
        else:  # has the same eigenvalues except zeros
            values, axes = torch.linalg.eigh(spread)
            root = axes * values.clamp_min(0).sqrt()
            product = root.T @ (weight.T @ weight) @ root
        energies = torch.linalg.eigvalsh(product).clamp_min(0).flip(0)
        power = output_power(layer)
        _known[layer] = energies / power if power > 0 else energies
    return _known[layer]


ENERGY_SHARES = (0.5, 0.9, 0.99, 0.999)


def shape(layer: Layer) -> tuple[float, ...]:
    """Fractions of the full rank that hold 50, 90, 99 and 99.9 % of the energy; compares the spectra of layers."""
    cumulative = output_energies(layer).cumsum(0)
    total = float(cumulative[-1])
    return tuple(float((cumulative < share * total).sum() + 1) / len(cumulative) for share in ENERGY_SHARES)


def tail(layer: Layer, rank: int) -> float:
    """Relative squared error of the best layer of that rank on the layer's inputs."""
    return float(output_energies(layer)[rank:].sum())
