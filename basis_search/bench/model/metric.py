"""Plans for a budget of FLOPs with and without the output metric, by task: their scores without any tuning."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from basis_search.bench.model import low_rank, searched, tuned
from basis_search.bench.model.captured import captured
from basis_search.bench.model.named_tasks import FOLDER, TASKS
from basis_search.bench.model.task import Task
from basis_search.layers.collection import Layers

BUDGETS = (0.75, 0.6, 0.5, 0.33, 0.25)
TUNED = (0.5, 0.33, 0.25)
Row = dict[str, Any]


def rows(device: str, threads: int, quick: bool = False) -> Iterator[Row]:
    """One row per task, budget and method. Models, layers and searches are stored under runs/model.

    Methods of low rank come first, for they need no search. The time of a search is limited, and it goes on where it
    stopped. `quick` measures low rank on the digits transformer alone.
    """
    torch.set_num_threads(threads)
    tasks = [TASKS["digits"](FOLDER)] if quick else [make(FOLDER) for make in TASKS.values()]
    for task in tasks:
        layers = captured(task, FOLDER)
        yield from low_rank_rows(task, layers)
        yield searched.int8_row(task, layers)
    if not quick:
        for task in tasks:
            yield from searched.rows(task, captured(task, FOLDER), FOLDER, BUDGETS)


def tuned_rows(device: str, threads: int, quick: bool = False) -> Iterator[Row]:
    """One row per task, budget and stage: layers fitted alone, refitted in order, distilled; both by the output.

    Plans are those of `rows` over all families where its search is stored, else low rank. `quick` is the digits
    transformer alone.
    """
    torch.set_num_threads(threads)
    for make in [TASKS["digits"]] if quick else TASKS.values():
        task = make(FOLDER)
        yield from tuned.rows(task, captured(task, FOLDER), FOLDER, TUNED)


def low_rank_rows(task: Task, layers: Layers, budgets: tuple[float, ...] = BUDGETS) -> Iterator[Row]:
    """Uniform and allocated ranks, fitted to inputs only and in the output metric."""
    yield {"task": task.name, "method": "dense", **task.measured(task.model)}
    both = {"inputs only": low_rank.inputs_only(layers), "two-sided": list(layers)}
    for budget in budgets:
        for sides, given in both.items():
            for how, choose in (("uniform", low_rank.uniform), ("allocated", low_rank.allocated)):
                start = time.perf_counter()
                ranks = choose(given, budget)
                model = low_rank.replaced(task, given, ranks)
                spent = time.perf_counter() - start
                found = {"task": task.name, "flops": budget, "method": f"low rank, {sides}, {how}"}
                yield found | task.measured(model) | {"seconds": spent}
