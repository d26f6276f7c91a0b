"""Analytic cost of a call, and the predicted error and latency of a candidate."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Cost:
    """Analytic cost of one call on `batch` rows, without what is done once per weight.

    Attributes:
        multiplications: scalar multiplications.
        additions: scalar additions, subtractions and comparisons.
        lookups: table entries fetched by a computed index.
        bytes: least memory traffic: parameters, inputs and outputs, each once.
        parameters: stored values, the bias included.
    """

    multiplications: int
    additions: int
    lookups: int
    bytes: int
    parameters: int

    @property
    def flops(self) -> int:
        """Multiplications plus additions: a multiply-add counts as 2."""
        return self.multiplications + self.additions

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(Cost)))


@dataclass(frozen=True)
class Forecast:
    """Predicted error and latency of a candidate before its fit; a search corrects them by what it measures.

    Attributes:
        error: relative squared output error, from spectra and closed forms.
        latency_ratio: latency divided by the dense layer's.
    """

    error: float
    latency_ratio: float


def element_size(dtype: torch.dtype) -> int:
    """Bytes of one value."""
    return torch.empty((), dtype=dtype).element_size()
