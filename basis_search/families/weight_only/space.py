"""The search space of weight-only quantised layers: 8 bits, and 4 bits in groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from basis_search.errors import BadInput
from basis_search.families.weight_only.kernels import KERNELS
from basis_search.families.weight_only.spec import Spec
from basis_search.layers.layer import Layer

MOST_ROWS = 64
"""Rows per call up to which a call takes as long as its weights' bytes."""


@dataclass
class Space:
    """Bounds of the search.

    Attributes:
        bits: to try.
        group: sizes to try with 4 bits.
    """

    bits: tuple[int, ...] = (8, 4)
    group: tuple[int, ...] = (32, 128)


def suggest(trial: Any, layer: Layer, space: Space) -> Spec:
    """8 bits, or 4 in groups of one of the space's sizes, where torch has a product for the layer.

    Raises:
        BadInput: a call has more than 64 rows, or torch has none, as on a CPU; the sentence gives the reason.
    """
    leave = f"leave weight_only out for layer {layer.name!r}"
    if layer.batch > MOST_ROWS:
        raise BadInput(
            f"weight_only: a call of {layer.batch} rows takes as long as its operations, not as its weights' bytes; "
            f"torch's products with packed weights are made for at most {MOST_ROWS}; {leave}"
        )
    specs = [s for bits in space.bits for s in ([Spec(8)] if bits == 8 else [Spec(4, group) for group in space.group])]
    reasons = {spec: _refusal(spec, layer) for spec in specs}
    possible = [spec for spec, reason in reasons.items() if reason is None]
    if not possible:
        raise BadInput(f"weight_only: {next(iter(reasons.values()))}; {leave}")
    bits = trial.suggest_categorical("bits", list(dict.fromkeys(spec.bits for spec in possible)))
    if bits == 8:
        return Spec(8)
    return Spec(4, trial.suggest_categorical("group", [spec.group for spec in possible if spec.bits == 4]))


def _refusal(spec: Spec, layer: Layer) -> str | None:
    return next(kernel for kernel in KERNELS if kernel.name == f"int{spec.bits}pack").refuses(spec, layer)
