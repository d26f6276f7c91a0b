"""What a bench of a whole model needs to know of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Task:
    """A model with inputs to calibrate on, and its score on unseen ones.

    Args:
        name: such as "encoder".
        model: the dense model, in eval mode.
        pattern: of the layers to replace, as of `capture`.
        calibration: batches.
        unseen: batches of other examples.
        output: (model, batch) -> what matters of the model's output, [examples, ...].
        figures: model -> "score" in `unit`, on the unseen batches, and further figures by name.
        unit: such as "mean cosine".
        categorical: the output is logits, [examples, ..., classes].
        higher: whether a higher score is better.
    """

    name: str
    model: nn.Module
    pattern: str
    calibration: Sequence[Any]
    unseen: Sequence[Any]
    output: Callable[[nn.Module, Any], Tensor]
    figures: Callable[[nn.Module], Mapping[str, float]]
    unit: str
    categorical: bool = False
    higher: bool = True

    def measured(self, model: nn.Module) -> dict[str, Any]:
        """The columns of a table's row."""
        return {**self.figures(model), "unit": self.unit, "distance": self.distance(model)}

    def score(self, model: nn.Module) -> float:
        """In `unit`, on the unseen batches."""
        return self.figures(model)["score"]

    @cached_property
    def dense_outputs(self) -> list[Tensor]:
        """On the unseen batches."""
        with torch.no_grad():
            return [self.output(self.model, batch) for batch in self.unseen]

    @torch.no_grad()
    def distance(self, model: nn.Module) -> float:
        """Mean over unseen examples of the output's squared distance from the dense model's, over its mean square.

        Of logits: twice the Kullback-Leibler divergence in nats, summed over an example's positions.
        """
        moved, size, examples = 0.0, 0.0, 0
        for batch, goal in zip(self.unseen, self.dense_outputs, strict=True):
            ours, dense = self.output(model, batch).double(), goal.double()
            examples += len(dense)
            if self.categorical:
                p, q = dense.log_softmax(-1), ours.log_softmax(-1)
                moved += 2 * float((p.exp() * (p - q)).sum())
            else:
                moved += float((ours - dense).square().sum())
                size += float(dense.square().sum())
        return moved / examples if self.categorical else moved / size
