"""A short fine-tune in which the replaced model learns to answer as the dense one does (Hinton et al. 2015)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from basis_search.errors import BadInput
from basis_search.layers.capture import forward
from basis_search.layers.row_sample import hold_out

Distance = Callable[[Any, Any], Tensor]


def distill(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Any],
    *,
    epochs: int = 1,
    learning_rate: float = 1e-4,
    distance: Distance | None = None,
    seed: int = 0,
) -> float:
    """Trains the student in place; it ends as it was after the epoch, or before the first, that was closest.

    Args:
        student: the replaced model.
        teacher: the dense one; left as it is.
        batches: as for `capture`, kept in memory; the last quarter judges and is not trained on.
        epochs: passes over the others.
        learning_rate: the largest, of AdamW on a one-cycle schedule.
        distance: (student's answer, teacher's answer) -> scalar; by default ||s - t||^2 / ||t||^2 of the first tensor
            of each. For logits, KL divergence suits better.
        seed: of the batches' order.

    Returns:
        The student's mean distance from the teacher on the judging batches.

    Raises:
        BadInput: fewer than two batches, or nothing to train.
    """
    batches, measure = list(batches), distance or relative_squared_error
    if len(batches) < 2:
        raise BadInput(f"{len(batches)} batches were given, but at least 2 are needed: to train on and to judge by")
    parameters = [p for p in student.parameters() if p.requires_grad]
    if not parameters:
        raise BadInput("the student has no parameter that trains; call requires_grad_() on those that shall")
    fit, held_out = hold_out(len(batches))
    seen, unseen = batches[fit], batches[held_out]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    steps = max(2, epochs * len(seen))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    modes = student.training, teacher.training
    teacher.eval()
    best, state = _mean(student, teacher, unseen, measure), copy.deepcopy(student.state_dict())
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        student.train()
        for index in torch.randperm(len(seen), generator=generator).tolist():
            with torch.no_grad():
                answer = forward(teacher, seen[index])
            optimizer.zero_grad(set_to_none=True)
            measure(forward(student, seen[index]), answer).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        now = _mean(student, teacher, unseen, measure)
        if now < best:
            best, state = now, copy.deepcopy(student.state_dict())
    student.load_state_dict(state)
    optimizer.zero_grad(set_to_none=True)
    student.train(modes[0])
    teacher.train(modes[1])
    return best


@torch.no_grad()
def _mean(student: nn.Module, teacher: nn.Module, batches: Sequence[Any], distance: Distance) -> float:
    student.eval()
    return sum(float(distance(forward(student, b), forward(teacher, b))) for b in batches) / len(batches)


def relative_squared_error(student: Any, teacher: Any) -> Tensor:
    """||s - t||^2 / ||t||^2 of the first tensor of each answer."""
    s, t = (y if isinstance(y, Tensor) else y[0] for y in (student, teacher))
    return (s - t).square().sum() / t.square().sum()
