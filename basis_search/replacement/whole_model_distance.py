"""How far a replaced model's outputs are from the dense model's, on examples that no fit sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from basis_search.errors import BadInput
from basis_search.layers.batches import examples, forward
from basis_search.layers.row_sample import HELD_OUT_EVERY, hold_out

Output = Callable[[nn.Module, Any], Tensor]
"""(model, batch) -> the tensor that matters of the model's output."""


class OutputDistance:
    """The relative squared distance ||s - t||^2 / ||t||^2 of outputs from a model's, which are computed once.

    Args:
        teacher: the dense model, in eval mode.
        batches: as for `capture`; of each the last quarter of the examples is taken, of batches with one example every
            fourth, as `capture` holds them out.
        output: of a model on a batch; by default the first floating tensor that the model returns.

    Raises:
        BadInput: the output is no floating tensor, or holds NaN or infinite values.
    """

    def __init__(self, teacher: nn.Module, batches: Sequence[Any], output: Output | None = None):
        self._output = first_tensor if output is None else output
        self._batches = held_out_examples(batches)
        self._goals = [self._of(teacher, batch) for batch in self._batches]
        for goal in self._goals:
            if not bool(torch.isfinite(goal).all()):
                raise BadInput("the dense model's output holds NaN or infinite values; repair the model or the data")
        self._power = sum(float(goal.double().square().sum()) for goal in self._goals)

    def __call__(self, student: nn.Module) -> float:
        """inf where an output is not finite."""
        total = 0.0
        for batch, goal in zip(self._batches, self._goals, strict=True):
            total += float((self._of(student, batch).double() - goal.double()).square().sum())
        found = total / self._power if self._power > 0 else total
        return found if found == found else float("inf")

    @torch.no_grad()
    def _of(self, model: nn.Module, batch: Any) -> Tensor:
        return checked(self._output(model, batch))


def first_tensor(model: nn.Module, batch: Any) -> Tensor:
    """The first floating tensor of what the model returns."""
    found = forward(model, batch)
    parts = [found] if isinstance(found, Tensor) else found.values() if isinstance(found, Mapping) else found
    floating = [part for part in parts if isinstance(part, Tensor) and part.is_floating_point()]
    return checked(floating[0] if floating else found)


def checked(found: Any) -> Tensor:
    """Raises BadInput for anything but a floating tensor."""
    if not isinstance(found, Tensor) or not found.is_floating_point():
        kind = f"a tensor of {found.dtype}" if isinstance(found, Tensor) else repr(type(found).__name__)
        raise BadInput(
            f"the output is {kind}, but a floating tensor is needed, such as logits or an embedding; pass "
            "output=lambda model, batch: ... that returns one"
        )
    return found


def held_out_examples(batches: Sequence[Any]) -> list[Any]:
    """The batches with the last quarter of their examples; of batches with one example, every fourth, or the last."""
    found = []
    for index, batch in enumerate(batches):
        if (count := examples(batch)) > 1:
            found.append(_taken(batch, count, hold_out(count)[1]))
        elif index % HELD_OUT_EVERY == 1:
            found.append(batch)
    return found or [batches[-1]]


def _taken(batch: Any, count: int, index: slice) -> Any:
    """Every tensor of so many examples, at `index`; the rest as it is."""
    if isinstance(batch, Tensor):
        return batch[index] if batch.ndim and len(batch) == count else batch
    if isinstance(batch, Mapping):
        return {key: _taken(value, count, index) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(_taken(value, count, index) for value in batch)
    return batch
