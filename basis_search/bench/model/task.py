"""What a bench of a whole model needs to know of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
        score: model -> number, in `unit`; on the unseen batches.
        unit: such as "mean cosine"; how "worst" is found is the task's own.
        categorical: the output is logits, [examples, ..., classes].
        details: model -> further figures by name.
        higher: whether a higher score is better.
    """

    name: str
    model: nn.Module
    pattern: str
    calibration: Sequence[Any]
    unseen: Sequence[Any]
    output: Callable[[nn.Module, Any], Tensor]
    score: Callable[[nn.Module], float]
    unit: str
    categorical: bool = False
    details: Callable[[nn.Module], Mapping[str, float]] = lambda model: {}
    higher: bool = True

    def measured(self, model: nn.Module) -> dict[str, Any]:
        """The columns of a table's row."""
        return {"score": self.score(model), "unit": self.unit, **self.details(model), "distance": self.distance(model)}

    @torch.no_grad()
    def distance(self, model: nn.Module) -> float:
        """Mean over unseen examples of the output's squared distance from the dense model's, over its mean square.

        Of logits: twice the Kullback-Leibler divergence in nats, summed over an example's positions.
        """
        moved, size, examples = 0.0, 0.0, 0
        for batch in self.unseen:
            ours, dense = self.output(model, batch).double(), self.output(self.model, batch).double()
            examples += len(dense)
            if self.categorical:
                p, q = dense.log_softmax(-1), ours.log_softmax(-1)
                moved += 2 * float((p.exp() * (p - q)).sum())
            else:
                moved += float((ours - dense).square().sum())
                size += float(dense.square().sum())
        return moved / examples if self.categorical else moved / size
