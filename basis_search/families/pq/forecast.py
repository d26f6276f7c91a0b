"""Predicted error of codebooks: distortion of a Gaussian group at a rate of 4 bits, sum_i min(theta, l_i).

Reverse water-filling (Cover and Thomas, Elements of Information Theory, 10.3.3), group by group.
"""

from __future__ import annotations

import itertools
import weakref

import torch

from basis_search.families.pq.spec import BUCKETS, LEVELS, Spec, bounds
from basis_search.families.protocol import Forecast
from basis_search.layers.layer import Layer
from basis_search.layers.output_spectrum import covariance, output_power

TIME_PER_CODE = {
    ("tree", "uint8"): 2.0,
    ("tree", "float32"): 6.0,
    ("kmeans", "uint8"): 14.0,
    ("kmeans", "float32"): 14.0,
}
"""Time of an output's look-up, and its share of the encoding, in multiply-adds of a dense layer."""
CALL_LATENCY = 0.02
"""Latency of a call apart from its products, divided by that of a dense layer of usual size."""
MOST_ERROR = 1.5
"""Largest error predicted: where 15 C is near the number of rows, the estimate is up to 20 times the distortion."""

_known: weakref.WeakKeyDictionary[Layer, dict[int, float]] = weakref.WeakKeyDictionary()


def forecast(spec: Spec, layer: Layer) -> Forecast:
    """Distortion of the groups, propagated by the weights, raised where 15 values a codebook meet few rows."""
    known = _known.setdefault(layer, {})
    if spec.codebooks not in known:
        known[spec.codebooks] = _distortion(layer, spec.codebooks)
    freedom = (BUCKETS - 1) * spec.codebooks / len(layer.inputs)
    error = known[spec.codebooks] / max(0.05, abs(1 - freedom))
    latency = CALL_LATENCY + TIME_PER_CODE[spec.encoder, spec.table] * spec.codebooks / (2 * layer.in_features)
    return Forecast(min(MOST_ERROR, error), latency)


def _distortion(layer: Layer, codebooks: int) -> float:
    spread, weight = covariance(layer), layer.weight.double()
    power = output_power(layer)
    lost = 0.0
    for begin, end in itertools.pairwise(bounds(layer.in_features, codebooks)):
        part = spread[begin:end, begin:end]
        values, axes = torch.linalg.eigh(part)
        values = values.clamp_min(0)
        carried = (weight[:, begin:end] @ axes).square().sum(0)  # [group]: gain of each direction
        lost += float((_left(values) * carried).sum())
    return lost / power if power > 0 else 0.0


def _left(variances: torch.Tensor) -> torch.Tensor:
    """Least mean squared errors of independent Gaussians under a code of `LEVELS` bits."""
    ordered = variances.flip(0).clamp_min(1e-300)
    logs = ordered.log2().cumsum(0)
    counts = torch.arange(1, len(ordered) + 1, device=ordered.device)
    # With the k largest above the level: sum of log2(l_i / theta) / 2 = LEVELS.
    levels = torch.exp2((logs - 2 * LEVELS) / counts)
    inside = levels <= ordered
    theta = levels[int(inside.nonzero().max())] if bool(inside.any()) else levels[0]
    return torch.minimum(variances, theta)
