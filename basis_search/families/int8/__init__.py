"""Int8 weights and inputs through torch's quantised linear: y = s t (q - z) w^T + b, the point to beat on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from basis_search.families.int8.fit import fit
from basis_search.families.int8.forecast import forecast
from basis_search.families.int8.kernels import KERNELS
from basis_search.families.int8.spec import Spec
from basis_search.families.protocol import Cost, element_size
from basis_search.layers.layer import Layer, LayerLike

__all__ = ["FITS_ROWS", "KERNELS", "Space", "Spec", "cost", "fit", "forecast", "suggest"]

FITS_ROWS = False

SCALE_BYTES = 4


@dataclass
class Space:
    """Args: reduce_range: the input ranges to try, see `Spec`."""

    reduce_range: tuple[bool, ...] = (True, False)


def suggest(trial: Any, layer: Layer, space: Space) -> Spec:
    """7-bit or 8-bit inputs."""
    return Spec(reduce_range=trial.suggest_categorical("reduce_range", list(space.reduce_range)))


def cost(spec: Spec, layer: LayerLike) -> Cost:
    """The dense layer's operations, those of int8 counted like those of floats, and the coding of inputs and outputs.

    The flops do not fall: what falls is latency, where the CPU does more int8 operations a second, and bytes, with one
    byte a weight. Coding takes, per input, two compares for the range, a multiply-add and a zero point to subtract; per
    output, one multiplication.
    """
    n, k, m = layer.batch, layer.in_features, layer.out_features
    return Cost(
        multiplications=n * (k * m + k + m),
        additions=n * (k * m + 4 * k),
        lookups=0,
        bytes=k * m + SCALE_BYTES * m + element_size(layer.dtype) * (m + n * k + n * m),
        parameters=k * m + 2 * m,
    )
