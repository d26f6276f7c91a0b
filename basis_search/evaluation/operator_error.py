"""Errors of a fitted operator on a layer's held-out rows: plain, and weighted by the layer's output metric."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from basis_search.evaluation.correctness import in_rows
from basis_search.families.protocol import Family, Params
from basis_search.layers.layer import Layer

_energies: weakref.WeakKeyDictionary[Layer, float] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class HeldOutErrors:
    """Relative squared errors; infinite where the output is NaN.

    Attributes:
        plain: ||Y - Y'||^2 / ||Y||^2.
        weighted: sum of e^T G e / sum of y^T G y, or None for a layer without an output metric.
    """

    plain: float
    weighted: float | None = None

    @property
    def searched(self) -> float:
        """The one that a search minimises."""
        return self.plain if self.weighted is None else self.weighted

    @property
    def name(self) -> str:
        return "error" if self.weighted is None else "weighted error"

    def damage(self, layer: Layer) -> float | None:
        """The weighted error times the layer's `metric_sensitivity`."""
        sensitivity = layer.metric_sensitivity
        return None if self.weighted is None or sensitivity is None else self.weighted * sensitivity


def operator_error(layer: Layer, y: Tensor) -> float:
    """||Y - Y'||^2 / ||Y||^2 on the held-out rows for y = Y' + bias [held_out, out], in float64."""
    return operator_errors(layer, y).plain


def operator_errors(layer: Layer, y: Tensor) -> HeldOutErrors:
    """Both errors on the held-out rows for y = Y' + bias [held_out, out], in float64.

    Args:
        layer: with its tensors where y is.
        y: the operator's outputs.
    """
    exact = layer.held_out.double() @ layer.weight.double().T  # [held_out, out]
    approximate = y.double() if layer.bias is None else y.double() - layer.bias.double()
    error = approximate - exact
    scale, difference = float(exact.square().sum()), float(error.square().sum())
    plain = math.inf if math.isnan(difference) else difference / scale if scale > 0 else difference
    metric = layer.output_metric
    if metric is None:
        return HeldOutErrors(plain)
    if layer not in _energies:
        _energies[layer] = float(metric.energy(exact))
    whole = _energies[layer]
    if math.isinf(plain):
        return HeldOutErrors(plain, math.inf)
    return HeldOutErrors(plain, max(0.0, float(metric.energy(error))) / whole if whole > 0 else 0.0)


@torch.no_grad()
def held_out_errors(layer: Layer, module: Family, spec: Any, params: Params) -> HeldOutErrors:
    """Of the reference kernel, on the layer's device."""
    reference = module.KERNELS[0]
    held_out = layer.held_out.to(layer.device, layer.dtype)
    return operator_errors(layer, in_rows(partial(reference.run, spec, reference.pack(spec, params)), held_out))
