"""The Pareto front: evaluations that no other one dominates in error, FLOPs and latency.

The error is the weighted one for layers with an output metric.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from basis_search.evaluation.candidate import Evaluation
from basis_search.layers.layer import Layer


@dataclass(frozen=True)
class ParetoFront:
    """Non-dominated evaluations of one layer, cheapest first; `add` and `merge` return a new front.

    Attributes:
        evaluations: none dominates another; failed ones are never among them.
        layer: the layer that they were fitted to, if it is loaded; a plan needs it to fit again.
    """

    evaluations: tuple[Evaluation, ...] = ()
    layer: Layer | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, evaluations: Iterable[Evaluation], layer: Layer | None = None) -> ParetoFront:
        """The front of evaluations; failed and dominated ones are left out."""
        kept: list[Evaluation] = []
        for new in sorted((e for e in evaluations if e.failure is None), key=lambda e: e.objectives):
            if not any(dominates(old, new) or old.objectives == new.objectives for old in kept):
                kept.append(new)  # sorted by error first: no later one can dominate an earlier
        return cls(tuple(sorted(kept, key=lambda e: (e.cost.flops, e.searched_error))), layer)

    def add(self, evaluation: Evaluation) -> ParetoFront:
        return ParetoFront.of((*self.evaluations, evaluation), self.layer)

    def merge(self, other: ParetoFront) -> ParetoFront:
        return ParetoFront.of((*self.evaluations, *other.evaluations), self.layer or other.layer)

    def hypervolume(self, reference: tuple[float, float, float] = (1.0, 1.5, 3.0)) -> float:
        """Volume dominated within the box from 0 to `reference` in (error, FLOPs ratio, latency ratio)."""
        return hypervolume([e.objectives for e in self.evaluations], reference)

    def __len__(self) -> int:
        return len(self.evaluations)


def dominates(a: Evaluation, b: Evaluation) -> bool:
    """Whether no objective of `a` is worse and one is better."""
    return a.objectives != b.objectives and all(x <= y for x, y in zip(a.objectives, b.objectives, strict=True))


def hypervolume(points: Sequence[tuple[float, ...]], reference: Sequence[float]) -> float:
    """Volume of the union of the boxes [point, reference], exact, by slicing along the last coordinate."""
    inside = [p for p in points if all(x < r for x, r in zip(p, reference, strict=True))]
    if not inside:
        return 0.0
    if len(reference) == 1:
        return reference[0] - min(p[0] for p in inside)
    if len(reference) == 2:  # a sweep: in three dimensions a search asks for this after every evaluation
        area, top = 0.0, reference[1]
        for x, y in sorted(inside):
            if y < top:
                area, top = area + (reference[0] - x) * (top - y), y
        return area
    heights = sorted({p[-1] for p in inside})
    volume = 0.0
    for low, high in zip(heights, [*heights[1:], reference[-1]], strict=True):
        slab = [p[:-1] for p in inside if p[-1] <= low]
        volume += (high - low) * hypervolume(slab, reference[:-1])
    return volume if math.isfinite(volume) else math.inf
