"""Predicted rounding error of e4m3, the same at every exponent, propagated to the outputs."""

from __future__ import annotations

import math

from basis_search.families.fp8.spec import Spec
from basis_search.families.protocol import Forecast, assumed_ratio, rounding_gains
from basis_search.layers.layer import Layer
from basis_search.layers.output_spectrum import searched_power, weight_in_metric

SPEEDUPS = {"static": {4096: 1.2, 8192: 1.5}, "dynamic": {4096: 1.1, 8192: 1.45}}
"""Assumed until one is measured. On an H200 `torch._scaled_mm` itself takes bfloat16's time over 1.47 at 4096 and 1.85
at 8192; a compiled call with dynamic scales 1.01 and 1.45."""
RELATIVE_NOISE = 2.0**-6 / 12 * (3 / 8) / math.log(2)
"""E[(rounding error / value)^2] with 3 bits of mantissa: steps of 2^-3 of the octave's start, variance step^2 / 12, for
values with a mantissa m distributed as 1/m over [1, 2), where E[1/m^2] = 3 / (8 ln 2)."""


def forecast(spec: Spec, layer: Layer) -> Forecast:
    """Independent errors of inputs and weights in proportion to their values: 2 delta sum w_ji^2 E[x_i^2] / E|y|^2.

    With an output metric G the inputs' half has (W^T G W)_ii for sum_j w_ji^2, and the weights' that of error feedback.
    """
    layer = layer.on_device()
    power = searched_power(layer)
    gains, of_columns = rounding_gains(layer)
    of_weights = gains @ layer.weight.double().square() @ of_columns
    of_inputs = weight_in_metric(layer).square().sum(0)
    terms = float(of_weights + of_inputs @ layer.second_moment.diagonal())
    return Forecast(RELATIVE_NOISE * terms / power if power > 0 else 0.0, assumed_ratio(SPEEDUPS[spec.scales], layer))
