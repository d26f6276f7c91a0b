"""Spectrum of a layer's outputs: the eigenvalues of W C W^T over E ||W x||^2, C the covariance of the inputs.

Where the layer has an output metric G it is two-sided: squared singular values of G^(1/2) W C^(1/2) over
tr(G W S W^T), S the second moment of the inputs. Errors that forecasts derive from it are then the weighted ones.

All is computed on the layer's device; only results in Python numbers, and the spectrum, are copied to the CPU.
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from basis_search.layers.input_mean import answered_mean
from basis_search.layers.layer import Layer
from basis_search.layers.principal_directions import small_moment

_known: weakref.WeakKeyDictionary[Layer, Tensor] = weakref.WeakKeyDictionary()
_powers: weakref.WeakKeyDictionary[Layer, Tensor] = weakref.WeakKeyDictionary()


def covariance(layer: Layer) -> Tensor:
    """[in, in] second moment of the inputs, about their mean if the layer has a bias to absorb it, else about zero."""
    layer = layer.on_device()
    second = layer.second_moment
    if layer.bias is None:
        return second
    mean = answered_mean(layer).to(second)
    return second - torch.outer(mean, mean)


def output_power(layer: Layer) -> float:
    """E ||W x||^2 with the mean: the denominator of relative errors; cached by layer: it takes out in^2 operations."""
    return float(_power(layer.on_device()))


def _power(layer: Layer) -> Tensor:
    if layer not in _powers:
        weight = layer.weight.double()
        _powers[layer] = ((weight @ layer.second_moment) * weight).sum()
    return _powers[layer]


def weight_in_metric(layer: Layer) -> Tensor:
    """R^T W [out, in], float64, for a root R R^T = G of the output metric; W without one; zero for G = 0.

    The squared length of its product with an input is the energy of the output in the metric.
    """
    global _last
    layer = layer.on_device()
    metric = layer.output_metric
    if metric is None:
        return layer.weight.double()
    if _last is None or _last[0]() is not layer:
        _last = None  # frees its memory first
        weight = layer.weight.double()
        seen = metric.root(0.0).transposed_times(weight) if bool(metric.trace > 0) else torch.zeros_like(weight)
        _last = weakref.ref(layer), seen
    return _last[1]


_last: tuple[weakref.ref[Layer], Tensor] | None = None  # the layer whose weight was last put in its metric


def searched_power(layer: Layer) -> float:
    """tr(G W S W^T), the denominator of weighted errors; `output_power` without an output metric."""
    sensitivity = layer.metric_sensitivity
    return output_power(layer) if sensitivity is None else sensitivity


def output_gains(layer: Layer) -> Tensor:
    """[out], float64: the diagonal of G, by which errors of weights that are independent of each other weigh; or ones.

    On the layer's device.
    """
    placed = layer.on_device()
    if placed.output_metric is None:
        return torch.ones(placed.out_features, dtype=torch.float64, device=placed.weight.device)
    return placed.output_metric.diagonal()


def output_energies(layer: Layer) -> Tensor:
    """The spectrum, descending, [min(in, out)], float64 on the CPU; cached by layer.

    The sum from r on is the error of the best layer of rank r (Eckart and Young 1936), weighted where there is an
    output metric; they sum to less than 1 where the inputs' mean is not zero.
    """
    if layer not in _known:
        placed = layer.on_device()
        product = small_moment(weight_in_metric(placed), covariance(placed))
        energies = torch.linalg.eigvalsh(product).clamp_min(0).flip(0)
        power = _power(placed) if layer.metric_sensitivity is None else energies.new_tensor(layer.metric_sensitivity)
        _known[layer] = torch.where(power > 0, energies / power, energies).cpu()
    return _known[layer]


ENERGY_SHARES = (0.5, 0.9, 0.99, 0.999)


def shape(layer: Layer) -> tuple[float, ...]:
    """Fractions of the full rank that hold 50, 90, 99 and 99.9 % of the energy; compares the spectra of layers."""
    cumulative = output_energies(layer).cumsum(0)
    total = float(cumulative[-1])
    return tuple(float((cumulative < share * total).sum() + 1) / len(cumulative) for share in ENERGY_SHARES)


def tail(layer: Layer, rank: int) -> float:
    """Relative squared error of the best layer of that rank on the layer's inputs, in its metric where it has one."""
    return float(output_energies(layer)[rank:].sum())
