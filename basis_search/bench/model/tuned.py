"""Refit in order and distillation on top of a plan, both towards the task's output: scores at every stage."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from basis_search.bench.model import low_rank, searched
from basis_search.bench.model.task import Task
from basis_search.layers.collection import Layers
from basis_search.replacement.distill import distill
from basis_search.replacement.export import apply_
from basis_search.replacement.refit import refit

EPOCHS, LEARNING_RATE = 10, 1e-4
Row = dict[str, Any]


def rows(task: Task, layers: Layers, folder: Path, budgets: Sequence[float]) -> Iterator[Row]:
    """Of the plan over all families where the task was searched, else of the allocated two-sided ranks."""
    table = searched.stored(layers, folder / task.name / "searched")
    for budget in budgets:
        chosen, kind = (None if table is None else searched.plan_for(table, budget)), "all families"
        if chosen is None:
            chosen, kind = low_rank.plan(layers, low_rank.allocated(layers, budget)), "low rank"
        head = {"task": task.name, "flops": budget, "plan": kind}
        model = apply_(copy.deepcopy(task.model), chosen, layers)
        yield head | {"method": "fitted alone", **task.measured(model)}
        start = time.perf_counter()
        model = refit(copy.deepcopy(task.model), chosen, task.calibration, output=task.output)
        yield head | {"method": "refitted", **task.measured(model), "seconds": time.perf_counter() - start}
        start = time.perf_counter()
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.requires_grad_(False)
        distill(
            model, task.model, task.calibration, epochs=EPOCHS, learning_rate=LEARNING_RATE, output=task.output,
            distance=divergence if task.categorical else None,
        )  # fmt: skip
        yield head | {"method": "distilled", **task.measured(model), "seconds": time.perf_counter() - start}


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence of the logits [..., classes], nats."""
    p, q = teacher.log_softmax(-1), student.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()
