"""Fit a chain to a layer: min E||(W - K)(x - mu)||^2 and b' = b + (W - K) mu, with mu = 0 where there is no bias.

The norm is that of the layer's output metric G where it has one, ||e||^2 = e^T G e.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from basis_search.families.kronecker import blocks
from basis_search.families.kronecker.factorization import factorize
from basis_search.families.kronecker.spec import Spec, require_fit
from basis_search.families.protocol import Params
from basis_search.layers.input_mean import answered_mean
from basis_search.layers.layer import Layer
from basis_search.layers.output_metric import OutputMetric
from basis_search.layers.ridge import fitting_metric, input_ridge

SWEEPS = 2  # more overfit: the error on held-out rows does not fall
SWEEPS_IN_METRIC = 5
"""In an output metric, whose ridges are chosen, more lower held-out errors: by up to 27 % to here."""
LEAST_GAIN = 1e-3  # sweeps end at a smaller relative decrease of the error


def fit(spec: Spec, layer: Layer) -> Params:
    """Block SVDs on columns scaled by the inputs' root mean square, then least squares under their second moment.

    With an output metric rows are multiplied by the root of its blocks first, and least squares are weighted by it.

    Returns "factor_0", ... [a, b, c, d] in the layer's dtype and on its device, leftmost first; "bias" [out] where the
    layer has one, including the mean output error; "out_features" (an integer) where the chain has more rows than the
    layer.

    Memory, in double precision for a chain [M, N] of n values: about 6 M N + 5 N^2 + 8 n values, and 4 times
    `MOST_VALUES` for the largest intermediates: 5 GB for 4096 -> 11008. On a GPU the host reads a value for each
    sweep, and each sweep of `batched_eigh`, and five more.

    Raises:
        BadInput: the chain is smaller than the layer.
    """
    layer = layer.on_device()
    require_fit(spec, layer)
    rows, columns = spec.parsed.shape
    out, width = layer.out_features, layer.in_features
    weight = layer.weight.new_zeros(rows, columns, dtype=torch.float64)
    weight[:out, :width] = layer.weight.double()
    moment, mean = _moment(layer, columns)
    metric = _metric(layer, rows)
    result = factorize(
        weight,
        spec.parsed,
        second_moment=moment,
        sweeps=SWEEPS if metric is None else SWEEPS_IN_METRIC,
        tolerance=LEAST_GAIN,
        output_metric=metric,
    )
    factors = _balanced(result.factors)
    params = {f"factor_{index}": w.to(layer.dtype).contiguous() for index, w in enumerate(factors)}
    if layer.bias is not None:
        difference = (weight - blocks.dense(blocks.fuse_all(factors)))[:out, :width]
        params["bias"] = (layer.bias.double() + difference @ mean).to(layer.dtype)
    if rows > out:
        params["out_features"] = torch.tensor(out, device=layer.device)
    return params


def _moment(layer: Layer, columns: int) -> tuple[Tensor, Tensor]:
    """The second moment [N, N] to fit under, including padding, and the mean input [in] that is subtracted from it.

    Few samples leave directions unseen; a ridge that falls with samples / in keeps the fit close to W there.
    """
    width = layer.in_features
    mean = answered_mean(layer)
    seen = layer.second_moment - torch.outer(mean, mean)
    known = input_ridge(layer)
    share = min(0.1, max(1e-6, 0.01 * width / len(layer.inputs))) if known is None else known
    power = seen.diagonal().mean()
    ridge = torch.where(power > 0, share * power, 1.0)
    moment = mean.new_zeros(columns, columns)
    moment[:width, :width] = seen
    moment.diagonal()[:width] += ridge
    # Padded inputs are always zero; a small weight bounds the unused entries of the last factor.
    moment.diagonal()[width:] += 1e-3 * ridge
    return moment, mean


def _metric(layer: Layer, rows: int) -> OutputMetric | None:
    """`fitting_metric` with a unit for each of the padded rows, whose weights are zero."""
    metric = fitting_metric(layer)
    more = rows - layer.out_features
    if metric is None or more == 0:
        return metric
    if metric.matrix is not None:
        whole = functional.pad(metric.matrix, (0, more, 0, more))
        whole.diagonal()[layer.out_features :] = 1
        return OutputMetric(whole)
    assert metric.rest is not None
    assert metric.factor is not None
    rest = functional.pad(metric.rest, (0, more), value=1.0)
    return OutputMetric(rest=rest, factor=functional.pad(metric.factor, (0, 0, 0, more)))


def _balanced(factors: list[Tensor]) -> list[Tensor]:
    """The same product with equal gain ||K||_F / sqrt(rows) of all factors, so that none overflows a 16-bit float."""
    gains = torch.stack([w.norm() / (w.shape[0] * w.shape[1] * w.shape[3]) ** 0.5 for w in factors])
    scales = torch.where(gains.min() > 0, gains.log().mean().exp() / gains, 1.0)
    return [w * scale for w, scale in zip(factors, scales, strict=True)]
