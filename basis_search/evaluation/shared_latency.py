"""Latencies shared between layers: one per structure, kind of layer (rows, features, bias, dtype) and device."""

from __future__ import annotations

from collections.abc import Iterable

from basis_search.evaluation.candidate import Candidate, Evaluation
from basis_search.evaluation.code_version import code_version
from basis_search.evaluation.timing import fingerprint
from basis_search.layers.layer import Layer

LARGEST_SPREAD = 0.25
"""Interquartile range over median of a latency ratio: noisier ones are measured again, not shared."""


def twin_of(
    evaluations: Iterable[Evaluation], layer: Layer, candidate: Candidate, threads: int = 1
) -> Evaluation | None:
    """The steadiest evaluation whose latencies hold for the candidate on this layer too; None if none does."""
    device, code = fingerprint(layer.device, threads), code_version()
    found = [
        e
        for e in evaluations
        if e.kind == layer.kind
        and e.candidate.family == candidate.family
        and e.candidate.spec == candidate.spec
        and e.device == device
        and e.code == code
        and e.failure is None
        and e.timed_spread <= LARGEST_SPREAD
    ]
    return min(found, key=lambda e: e.timed_spread, default=None)
