"""Distillation: a short fine-tune of the replaced model towards the dense model's outputs (Hinton et al. 2015)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from basis_search.errors import BadInput
from basis_search.layers.batches import forward
from basis_search.layers.row_sample import hold_out

Distance = Callable[[Any, Any], Tensor]
Output = Callable[[nn.Module, Any], Any]
"""(model, batch) -> what a distance compares."""


def distill(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Any],
    *,
    epochs: int = 1,
    learning_rate: float = 1e-4,
    distance: Distance | None = None,
    seed: int = 0,
    output: Output | None = None,
) -> float:
    """Trains the student in place; it ends in the state of the epoch, the start included, with the least distance.

    Args:
        student: the replaced model.
        teacher: the dense model; unchanged.
        batches: as for `capture`, held in memory; the last quarter is held out to evaluate on.
        epochs: passes over the other batches.
        learning_rate: the largest, of AdamW on a one-cycle schedule.
        distance: (student's output, teacher's output) -> scalar; by default ||s - t||^2 / ||t||^2 of the first tensor
            of each. For logits, use KL divergence.
        seed: of the batches' order.
        output: (model, batch) -> what the distance compares, such as a pooled embedding; by default all that the model
            returns, padded positions included.

    Returns:
        The student's mean distance from the teacher on the held-out batches.

    Raises:
        BadInput: fewer than two batches, or nothing to train.
    """
    batches, measure, run = list(batches), distance or relative_squared_error, output or forward
    if len(batches) < 2:
        raise BadInput(f"{len(batches)} batches were given, but at least 2 are needed: to train on and to evaluate on")
    parameters = [p for p in student.parameters() if p.requires_grad]
    if not parameters:
        raise BadInput("the student has no parameter that trains; call requires_grad_() on those to train")
    fit, held_out = hold_out(len(batches))
    train, evaluate = batches[fit], batches[held_out]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    steps = max(2, epochs * len(train))
    rise = max(0.1, 1.5 / steps)  # torch divides by its steps less 1
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=rise)
    modes = student.training, teacher.training
    teacher.eval()
    with torch.no_grad():
        goals = [(batch, run(teacher, batch)) for batch in evaluate]
    best, state = _mean(student, goals, run, measure), copy.deepcopy(student.state_dict())
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        student.train()
        for index in torch.randperm(len(train), generator=generator).tolist():
            with torch.no_grad():
                target = run(teacher, train[index])
            optimizer.zero_grad(set_to_none=True)
            measure(run(student, train[index]), target).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        now = _mean(student, goals, run, measure)
        if now < best:
            best, state = now, copy.deepcopy(student.state_dict())
    student.load_state_dict(state)
    optimizer.zero_grad(set_to_none=True)
    student.train(modes[0])
    teacher.train(modes[1])
    return best


@torch.no_grad()
def _mean(student: nn.Module, goals: Sequence[tuple[Any, Any]], run: Output, distance: Distance) -> float:
    student.eval()
    return sum(float(distance(run(student, batch), goal)) for batch, goal in goals) / len(goals)


def relative_squared_error(student: Any, teacher: Any) -> Tensor:
    """||s - t||^2 / ||t||^2 of the first tensor of each output."""
    s, t = (y if isinstance(y, Tensor) else y[0] for y in (student, teacher))
    return (s - t).square().sum() / t.square().sum()
