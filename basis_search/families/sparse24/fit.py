"""Which two of each four weights are kept, and how these change to make up for the others.

`compensate` follows SparseGPT (Frantar and Alistarh 2023): columns are pruned from the first to the last, and the error
of each is spread over the columns after it in the way that adds least to E |y - y'|^2. With H the covariance of the
inputs and H^-1 = U^T U, U upper triangular, a weight w left out of column j changes column i > j by -(w / U_jj) U_ji
and costs w^2 / U_jj^2, by which each group chooses. A bias takes the mean of the error, as `covariance` assumes.

In an output metric G the kept weights then fall along conjugate directions of tr(G (W - V) C (W - V)^T), V zero where
nothing is kept: outputs keep other weights, so that G couples what each can make up for.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from basis_search.families.protocol import Params
from basis_search.families.sparse24.layout import GROUP, compress, expand, largest_two, pad
from basis_search.families.sparse24.spec import Spec
from basis_search.layers.input_mean import answered_mean
from basis_search.layers.layer import Layer
from basis_search.layers.output_metric import OutputMetric
from basis_search.layers.output_spectrum import covariance
from basis_search.layers.ridge import fitting_metric

BLOCK = 128
"""Columns pruned before the columns after them are brought up to date by one product."""
STEPS = 20
"""Conjugate-gradient steps in an output metric."""
DAMPING = 1e-2
"""Added to the second moment's diagonal, relative to its mean, so that inputs that are always zero do no harm."""


def fit(spec: Spec, layer: Layer) -> Params:
    """ "values" [out, columns / 2] and "index" [out, columns / 8] uint8 for in_features padded to 8; "bias" [out]."""
    layer = layer.on_device()
    dense = layer.weight.to(torch.float64 if layer.dtype == torch.float64 else torch.float32)
    weight = pad(dense)
    if spec.compensate:
        spread = damped_covariance(layer, weight.shape[1])
        found, positions = compensated(weight, spread)
        metric = fitting_metric(layer)
        weight = found if metric is None else refitted(weight, found, positions, spread, metric)
    else:
        deviations = pad(layer.second_moment.diagonal()[None]).sqrt().to(weight)
        positions = largest_two((weight.abs() * deviations).view(len(weight), -1, GROUP))
    values, index = compress(weight.to(layer.dtype), positions)
    params = {"values": values, "index": index}
    if layer.bias is not None:
        lost = dense - expand(values, index)[:, : layer.in_features].to(dense)
        params["bias"] = (layer.bias.to(dense) + lost @ answered_mean(layer).to(dense)).to(layer.dtype)
    return params


def refitted(weight: Tensor, start: Tensor, positions: Tensor, spread: Tensor, metric: OutputMetric) -> Tensor:
    """The kept weights [out, columns] after `STEPS` conjugate-gradient steps from `start`; the error never rises.

    The preconditioner is the diagonal of the normal matrix, G_ii C_jj. No value is read.
    """
    kept = torch.zeros_like(weight).view(len(weight), -1, GROUP).scatter(2, positions, 1.0).view_as(weight)
    spread = spread.to(weight)
    scale = kept / torch.outer(metric.diagonal().to(weight), spread.diagonal())
    residual = kept * metric.times((weight - start) @ spread)
    found, direction = start, scale * residual
    rho = (residual * direction).sum(dtype=torch.float64)
    for _ in range(STEPS):
        image = kept * metric.times(direction @ spread)
        curvature = (direction * image).sum(dtype=torch.float64)
        length = torch.where((rho > 0) & (curvature > 0), rho / curvature, 0.0).to(weight)
        found, residual = found + length * direction, residual - length * image
        conditioned = scale * residual
        rho, before = (residual * conditioned).sum(dtype=torch.float64), rho
        direction = conditioned + torch.where(before > 0, rho / before, 0.0).to(weight) * direction
    return found


def damped_covariance(layer: Layer, columns: int) -> Tensor:
    """The inputs' covariance with zeros for padding and a larger diagonal, [columns, columns], float64."""
    spread = covariance(layer)
    # Where all inputs are zero any positive diagonal does.
    more = (DAMPING * spread.diagonal().mean()).clamp_min(torch.finfo(torch.float32).tiny)
    missing = columns - layer.in_features
    return F.pad(spread, (0, missing, 0, missing)) + more * torch.eye(columns, dtype=spread.dtype, device=spread.device)


def compensated(weight: Tensor, moment: Tensor) -> tuple[Tensor, Tensor]:
    """The pruned weight [out, columns], zero where nothing is kept, and the kept positions [out, columns / 4, 2]."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moment))
    factor = torch.linalg.cholesky(inverse, upper=True).to(weight)  # [columns, columns], H^-1 = U^T U
    weight, columns = weight.clone(), weight.shape[1]
    positions = []
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        block, errors = weight[:, start:stop], torch.zeros_like(weight[:, start:stop])
        for column in range(stop - start):
            here = start + column
            if column % GROUP == 0:
                pivots = factor.diagonal()[here : here + GROUP]
                kept = largest_two((block[:, column : column + GROUP] / pivots).abs())  # [out, 2]
                positions.append(kept)
                mask = torch.zeros(len(weight), GROUP, dtype=torch.bool, device=weight.device).scatter(1, kept, True)
            lost = block[:, column].masked_fill(mask[:, column % GROUP], 0)
            block[:, column].masked_fill_(~mask[:, column % GROUP], 0)
            errors[:, column] = lost / factor[here, here]
            block[:, column + 1 :] -= torch.outer(errors[:, column], factor[here, here + 1 : stop])
        weight[:, stop:] -= errors @ factor[start:stop, stop:]
    return weight, torch.stack(positions, 1)
