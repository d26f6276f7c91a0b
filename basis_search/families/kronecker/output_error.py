"""The squared error ||G^{1/2} (A - K) S^{1/2}||^2 of a chain K for a matrix A: S the second moment of the inputs, G the
metric of the outputs.

It is <A - K, G (A S - K S)>, with A S computed once and K S by the factors: M N^2 operations are spent once in a fit,
and both differences are small where the error is, so digits cancel only at errors near eps^2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from basis_search.families.kronecker import blocks
from basis_search.layers.output_metric import OutputMetric

MOST_VALUES = 1 << 26
"""Most values of an intermediate tensor (512 MB in double precision); larger ones are computed in parts."""


def inner(x: Tensor, y: Tensor) -> Tensor:
    """The real part of <x, y>, a tensor without dimensions."""
    return torch.sum(x.conj() * y).real


class OutputError:
    """The error of chains for one matrix `target` [M, N] and `moment` [N, N] (None: I), both in double precision.

    Args:
        target: A.
        moment: S.
        metric: G [M, M]; None for the identity.

    Attributes:
        seen: A S.
        weighted: G A S.
        total: ||G^{1/2} A S^{1/2}||^2, a tensor without dimensions.
    """

    def __init__(self, target: Tensor, moment: Tensor | None, metric: OutputMetric | None = None):
        self.target, self.moment, self.metric = target, moment, metric
        self.seen = target if moment is None else target @ moment
        self.weighted = self.in_metric(self.seen)
        self.total = inner(target, self.weighted).clamp_min(0)

    def in_metric(self, columns: Tensor) -> Tensor:
        """G X for X [M, n]."""
        return columns if self.metric is None else self.metric.times(columns)

    def of(self, factors: Sequence[Tensor]) -> Tensor:
        """||G^{1/2} (A - K_1 ... K_L) S^{1/2}||^2, a tensor without dimensions."""
        difference = self.target - blocks.dense(blocks.fuse_all(factors))
        if self.moment is None:
            return inner(difference, self.in_metric(difference)).clamp_min(0)
        largest = max(max(w.shape[1], w.shape[2]) * w.shape[0] * w.shape[3] for w in factors)
        step = max(1, MOST_VALUES // largest)
        error = torch.zeros_like(self.total)
        for begin in range(0, len(self.moment), step):
            columns = slice(begin, begin + step)
            seen = self.moment[:, columns]
            for w in reversed(factors):
                seen = blocks.apply_last(w, seen)  # K S
            error = error + inner(difference[:, columns], self.in_metric(self.seen[:, columns] - seen))
        return error.clamp_min(0)
