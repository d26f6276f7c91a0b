"""Spectrum of a layer's outputs: the eigenvalues of W C W^T over E ||W x||^2, C the covariance of the inputs.

All is computed on the layer's device; only results in Python numbers, and the spectrum, are copied to the CPU.
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from basis_search.layers.layer import Layer
from basis_search.layers.principal_directions import small_moment

_known: weakref.WeakKeyDictionary[Layer, Tensor] = weakref.WeakKeyDictionary()


def covariance(layer: Layer) -> Tensor:
    """[in, in] second moment of the inputs, about their mean if the layer has a bias to absorb it, else about zero."""
    layer = layer.on_device()
    second = layer.second_moment
    if layer.bias is None:
        return second
    mean = layer.inputs.double().mean(0).to(second)
    return second - torch.outer(mean, mean)


def output_power(layer: Layer) -> float:
    """E ||W x||^2 with the mean: the denominator of relative errors."""
    return float(_power(layer.on_device()))


def _power(layer: Layer) -> Tensor:
    weight = layer.weight.double()
    return ((weight @ layer.second_moment) * weight).sum()


def output_energies(layer: Layer) -> Tensor:
    """Descending eigenvalues of W C W^T over `output_power`, [min(in, out)], float64 on the CPU; cached by layer.

    The sum from r on is the error of the best layer of rank r (Eckart and Young 1936); they sum to less than 1 where
    the inputs' mean is not zero.
    """
    if layer not in _known:
        placed = layer.on_device()
        product = small_moment(placed.weight.double(), covariance(placed))
        energies = torch.linalg.eigvalsh(product).clamp_min(0).flip(0)
        power = _power(placed)
        _known[layer] = torch.where(power > 0, energies / power, energies).cpu()
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
