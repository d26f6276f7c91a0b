"""Predicted error of codebooks: distortion of a Gaussian group at a rate of 4 bits, sum_i min(theta, l_i).

Reverse water-filling (Cover and Thomas, Elements of Information Theory, 10.3.3), group by group; weighted by the
output metric where there is one.
"""

from __future__ import annotations

import itertools
import weakref

import torch

from basis_search.families.pq.spec import BUCKETS, LEVELS, Spec, bounds
from basis_search.families.protocol import Forecast, batched_eigh
from basis_search.layers.layer import Layer
from basis_search.layers.output_spectrum import covariance, searched_power, weight_in_metric

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
        known[spec.codebooks] = _distortion(layer.on_device(), spec.codebooks)
    freedom = (BUCKETS - 1) * spec.codebooks / len(layer.inputs)
    error = known[spec.codebooks] / max(0.05, abs(1 - freedom))
    latency = CALL_LATENCY + TIME_PER_CODE[spec.encoder, spec.table] * spec.codebooks / (2 * layer.in_features)
    return Forecast(min(MOST_ERROR, error), latency)


def _distortion(layer: Layer, codebooks: int) -> float:
    """Relative squared error of the outputs; one value is read."""
    spread, weight = covariance(layer), weight_in_metric(layer)
    starts = bounds(layer.in_features, codebooks)
    wide = sum(1 for begin, end in itertools.pairwise(starts) if end - begin == starts[1])  # these groups come first
    lost = spread.new_zeros(())
    for begin, end, count in ((0, starts[wide], wide), (starts[wide], starts[-1], codebooks - wide)):
        if count:
            width = (end - begin) // count
            parts = (
                spread[begin:end, begin:end]
                .reshape(count, width, count, width)
                .diagonal(dim1=0, dim2=2)
                .permute(2, 0, 1)
            )
            values, axes = batched_eigh(parts)  # [count, width], [count, width, width]
            values = values.clamp_min(0)
            part = weight[:, begin:end].reshape(-1, count, width).transpose(0, 1)  # [count, out, width]
            carried = ((part.mT @ part) @ axes * axes).sum(1)  # [count, width]: gain of each direction
            lost = lost + (_left(values) * carried).sum()
    power = searched_power(layer)
    return float(lost) / power if power > 0 else 0.0


def _left(variances: torch.Tensor) -> torch.Tensor:
    """Least mean squared errors of independent Gaussians [groups, width] under `LEVELS` bits for each group."""
    ordered = variances.flip(1).clamp_min(1e-300)
    logs = ordered.log2().cumsum(1)
    counts = torch.arange(1, ordered.shape[1] + 1, device=ordered.device)
    # With the k largest above the level: sum of log2(l_i / theta) / 2 = LEVELS.
    levels = torch.exp2((logs - 2 * LEVELS) / counts)
    last = torch.where(levels <= ordered, counts - 1, 0).amax(1, keepdim=True)
    return torch.minimum(variances, levels.gather(1, last))
