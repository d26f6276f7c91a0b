"""Predicted rounding error: step^2 / 12 for inputs and for weights, propagated to the outputs."""

from __future__ import annotations

from basis_search.families.int8.spec import Spec
from basis_search.families.protocol import Forecast, rounding_gains
from basis_search.layers.layer import Layer
from basis_search.layers.output_spectrum import searched_power, weight_in_metric

ASSUMED_LATENCY = 0.45
"""Latency divided by the dense layer's, assumed until one is measured."""


def forecast(spec: Spec, layer: Layer) -> Forecast:
    """Uniform rounding noise: inputs over their range in 127 or 255 steps, each row of weights in 254.

    Weighted where there is an output metric G, whose error feedback lowers the noise of the weights.
    """
    layer = layer.on_device()
    weight, x = layer.weight.double(), layer.inputs
    step = (x.max().clamp_min(0) - x.min().clamp_max(0)).double() / (127 if spec.reduce_range else 255)
    input_error = step**2 / 12 * weight_in_metric(layer).square().sum()
    rows = weight.abs().amax(1) / 127
    of_outputs, of_inputs = rounding_gains(layer)
    weight_error = of_outputs @ rows.square() / 12 * of_inputs.sum()
    error = float(input_error + weight_error)
    power = searched_power(layer)
    return Forecast(error / power if power > 0 else 0.0, ASSUMED_LATENCY)
