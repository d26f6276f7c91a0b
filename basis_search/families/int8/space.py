"""The search space of int8 layers: the range of the inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from basis_search.errors import BadInput
from basis_search.families.int8.kernels import KERNELS
from basis_search.families.int8.spec import Spec
from basis_search.layers.layer import Layer, LayerLike

INTEGER_KERNELS = ("torch-onednn", "torch-int8", "torch-int-mm")


@dataclass
class Space:
    """Bounds of the search.

    Attributes:
        reduce_range: the input ranges to try, see `Spec`.
    """

    reduce_range: tuple[bool, ...] = (True, False)


def suggest(trial: Any, layer: Layer, space: Space) -> Spec:
    """7-bit or 8-bit inputs.

    Raises:
        BadInput: the layer is on a GPU, and `torch._int_mm` does not take it.
    """
    if layer.device.type == "cuda":
        reason = KERNELS[-1].refuses(Spec(space.reduce_range[0]), layer)
        if reason is not None:
            raise BadInput(f"int8: {reason}; leave int8 out for layer {layer.name!r}")
    return Spec(reduce_range=trial.suggest_categorical("reduce_range", list(space.reduce_range)))


def best_spec(layer: LayerLike) -> Spec:
    """The most exact range that an integer kernel runs here: 8-bit inputs with VNNI or on a GPU, else 7-bit ones.

    `Spec()` is the range that runs everywhere.
    """
    full = Spec(reduce_range=False)
    integer = [kernel for kernel in KERNELS if kernel.name in INTEGER_KERNELS]
    return full if any(kernel.refuses(full, layer) is None for kernel in integer) else Spec()
