"""The search space of 2:4-sparse layers: how the kept weights are chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from basis_search.errors import BadInput
from basis_search.families.sparse24.kernels import KERNELS
from basis_search.families.sparse24.spec import Spec
from basis_search.layers.layer import Layer


@dataclass
class Space:
    """Bounds of the search.

    Attributes:
        compensate: the values to try, see `Spec`; they differ in error, not in latency.
    """

    compensate: tuple[bool, ...] = (True,)


def suggest(trial: Any, layer: Layer, space: Space) -> Spec:
    """One of the space's specs, where torch's semi-structured tensors run.

    Raises:
        BadInput: they do not, as on a CPU; the sentence gives the reason.
    """
    reason = KERNELS[-1].refuses(Spec(), layer)
    if reason is not None:
        raise BadInput(f"sparse24: {reason}; leave sparse24 out for layer {layer.name!r}")
    if len(space.compensate) == 1:
        return Spec(space.compensate[0])
    return Spec(trial.suggest_categorical("compensate", list(space.compensate)))
