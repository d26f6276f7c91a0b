"""Ridges of a layer's two moments, chosen once per layer: of the inputs' covariance C, and of the output metric G.

Fits in an output metric use both. Fits without one keep the regularisation of their family, and so do those whose G
is a multiple of the identity, which weighs all outputs alike.
"""

from __future__ import annotations

import weakref
from dataclasses import replace

import torch
from torch import Tensor

from basis_search.layers.input_mean import answered_mean
from basis_search.layers.layer import Layer
from basis_search.layers.output_metric import OutputMetric
from basis_search.layers.output_spectrum import weight_in_metric

INPUT_RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Shares of the mean variance of the inputs, of which one is chosen."""
TOLERANCE = 0.02
"""Share of the error by which a smaller ridge may be worse: a ridge too large costs low-rank fits as much."""
FEWEST_ROWS = 8
"""Layers with fewer rows of inputs hold out none, and keep their family's regularisation."""
BLOCKS, HELD_OUT_BLOCK = 16, 4
"""Consecutive rows, of which many belong to one example, are held out together: every fourth of 16 blocks."""
SKETCHED_OUTPUTS = 256
"""Wider outputs are replaced by so many random combinations of them, whose mean squared error is the same."""
OUTPUT_RIDGES = (1e-6, 1.0)
"""Least and largest ridge of G."""
ISOTROPIC = 1e-9
"""Share of the squared norm of G, apart from its mean diagonal, below which G is a multiple of the identity."""

_input_ridges: weakref.WeakKeyDictionary[Layer, float | None] = weakref.WeakKeyDictionary()
_output_ridges: weakref.WeakKeyDictionary[Layer, float | None] = weakref.WeakKeyDictionary()


def input_ridge(layer: Layer) -> float | None:
    """The ridge of C, relative to the mean of its diagonal; None where a family's own regularisation stays.

    It is the least of `INPUT_RIDGES` with which the best linear prediction of the outputs from every second input has,
    within `TOLERANCE`, the least weighted error on rows held out of `layer.inputs`: what all structured fits do is to
    predict outputs from fewer numbers. `layer.held_out` is not used: no fit sees it. C is of the remaining rows, or
    where the layer has a moment of more rows, of all those.
    """
    if layer not in _input_ridges:
        _input_ridges[layer] = None if output_ridge(layer) is None else _chosen(layer.on_device())
    return _input_ridges[layer]


def output_ridge(layer: Layer) -> float | None:
    """The ridge of G, relative to the mean of its diagonal; None without G, and for a G that weighs nothing.

    No rows of gradients are held out. The ridge is that of Oracle Approximating Shrinkage (Chen, Wiesel, Eldar, Hero,
    "Shrinkage algorithms for MMSE covariance estimation", 2010, an improvement of Ledoit and Wolf 2004 that needs the
    moment and the number of rows alone), about the effective rank of G over the number of rows. That number is taken to
    be the rows of `layer.inputs`, each of which had a gradient; the rows of one example depend on each other, so that
    fewer count than there were.
    """
    if layer not in _output_ridges:
        metric = layer.on_device().output_metric
        _output_ridges[layer] = None if metric is None else _shrinkage(metric, len(layer.inputs))
    return _output_ridges[layer]


def fitting_metric(layer: Layer) -> OutputMetric | None:
    """The metric in which fits measure errors: G with its ridge, of mean diagonal 1, on the layer's device, float64.

    None without G, for G = 0 and for a multiple of the identity. The minimiser in it never has a larger error in G
    than the unweighted one of the same C: its plain error is not smaller, so its weighted one is not larger.
    """
    global _last
    ridge = output_ridge(layer)
    if ridge is None:
        return None
    layer = layer.on_device()
    if _last is None or _last[0]() is not layer:
        _last = None  # frees its memory first
        assert layer.output_metric is not None
        _last = weakref.ref(layer), _raised(layer.output_metric, ridge)
    return _last[1]


_last: tuple[weakref.ref[Layer], OutputMetric] | None = None  # the layer whose metric was raised last


def _raised(metric: OutputMetric, ridge: float) -> OutputMetric:
    scale = 1 / (metric.diagonal().mean() * (1 + ridge))
    added = ridge / (1 + ridge)
    if metric.matrix is not None:
        matrix = metric.matrix.double() * scale
        matrix.diagonal().add_(added)
        return OutputMetric(matrix)
    assert metric.rest is not None
    assert metric.factor is not None
    return OutputMetric(rest=metric.rest.double() * scale + added, factor=metric.factor.double() * scale.sqrt())


def _shrinkage(metric: OutputMetric, rows: int) -> float | None:
    """One value is read from the device."""
    trace, square, p = metric.trace, _squared_norm(metric), metric.width
    trace, square = torch.stack([trace, square]).tolist()
    excess = square - trace**2 / p
    if trace <= 0 or excess <= ISOTROPIC * square:
        return None
    share = min(1.0, ((1 - 2 / p) * square + trace**2) / ((rows + 1 - 2 / p) * excess))
    least, largest = OUTPUT_RIDGES
    return min(largest, max(least, share / (1 - share))) if share < 1 else largest


def _squared_norm(metric: OutputMetric) -> Tensor:
    """||G||_F^2, without a matrix [out, out] where G has none."""
    if metric.matrix is not None:
        return metric.matrix.double().square().sum()
    assert metric.rest is not None
    assert metric.factor is not None
    rest, factor = metric.rest.double(), metric.factor.double()
    both = 2 * (rest * factor.square().sum(1)).sum() + (factor.T @ factor).square().sum()
    return rest.square().sum() + both


def _chosen(layer: Layer) -> float | None:
    """The errors are read from the device at once, and the rows of each part are counted there."""
    n, k = layer.inputs.shape
    if n < FEWEST_ROWS or k < 2:
        return None
    block = torch.arange(n, device=layer.inputs.device) * min(n, BLOCKS) // n
    unseen = block % HELD_OUT_BLOCK == HELD_OUT_BLOCK - 1
    fitted = replace(layer, inputs=layer.inputs[~unseen])
    mean = answered_mean(fitted)
    covariance = fitted.second_moment - torch.outer(mean, mean)
    test = layer.inputs[unseen].double() - mean
    weight = weight_in_metric(layer)
    if len(weight) > SKETCHED_OUTPUTS:
        draw = torch.Generator().manual_seed(0)
        mixing = torch.randn(SKETCHED_OUTPUTS, len(weight), generator=draw, dtype=weight.dtype)
        weight = mixing.to(weight.device) @ weight
    level = covariance.diagonal().mean()
    tried = [_prediction_error(weight, covariance, ridge * level, test) for ridge in INPUT_RIDGES]
    errors = torch.stack(tried).tolist()
    return next(r for r, error in zip(INPUT_RIDGES, errors, strict=True) if error <= (1 + TOLERANCE) * min(errors))


def _prediction_error(weight: Tensor, covariance: Tensor, ridge: Tensor, test: Tensor) -> Tensor:
    """Of the outputs `weight` x from every second input, for the rows `test`; infinite if not solvable."""
    raised = covariance.clone()
    raised.diagonal().add_(ridge)
    lower, info = torch.linalg.cholesky_ex(raised[::2, ::2])
    left = weight.clone()
    left[:, ::2] -= torch.cholesky_solve(raised[::2] @ weight.T, lower).T
    error = (test @ left.T).square().sum()
    return torch.where((info == 0) & error.isfinite(), error, torch.inf)
