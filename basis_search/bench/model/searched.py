"""Plans from a search of every family: each family with dense layers, all together, and int8 everywhere."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from basis_search.bench.model import low_rank
from basis_search.bench.model.task import Task
from basis_search.errors import BadInput
from basis_search.evaluation.candidate import Evaluation
from basis_search.families import FAMILIES, int8
from basis_search.layers.collection import Layers
from basis_search.layers.layer import Layer
from basis_search.planning.plan import Plan, plan
from basis_search.replacement.export import apply_, replace_layers
from basis_search.replacement.structured_linear import fit
from basis_search.study.model_search import search_model
from basis_search.workers.evaluation_log import Record
from basis_search.workers.run_folder import RunFolder

Row = dict[str, Any]
SEARCHED = ("dense", "lowrank", "kronecker", "stl", "pq", "int8")
TRIALS = (2, 4, 8, 16)
"""Trials per family and leading layer, in passes; no pass begins after `SECONDS`."""
SECONDS = 900.0
RANKS = 24
Table = dict[str, list[Evaluation]]


def int8_row(task: Task, layers: Layers) -> Row:
    """int8 in every layer, with the best range that this machine runs."""
    start = time.perf_counter()
    model = copy.deepcopy(task.model)
    for layer in layers:
        replace_layers(model, {(layer.name, *layer.aliases): fit(layer, "int8", int8.best_spec(layer))})
    return {"task": task.name, "method": "int8 everywhere", **task.measured(model), "seconds": _since(start)}


def rows(task: Task, layers: Layers, folder: Path, budgets: Sequence[float]) -> Iterator[Row]:
    """By family and with all families, of layers searched in their output metrics; and of a search without them.

    Without metrics the weight of a layer in the sum is its output's energy in the metric, so that only fits and errors
    are those of a search without.
    """
    table = with_ranks(layers, searched(layers, folder / task.name / "searched"))
    for family in SEARCHED[1:]:
        some = {n: [e for e in es if e.candidate.family in ("dense", family)] for n, es in table.items()}
        for budget in budgets:
            yield planned(task, layers, some, budget, f"{family} and dense")
    for budget in budgets:
        yield planned(task, layers, table, budget, "all families")
    plain = Layers(tuple(without_metric(layer) for layer in layers))
    known = with_ranks(plain, searched(plain, folder / task.name / "searched-without-metric"))
    for budget in budgets:
        yield planned(task, plain, known, budget, "all families, without the metric")


def without_metric(layer: Layer) -> Layer:
    return replace(layer, output_metric=None, sensitivity=max(layer.metric_sensitivity or 0.0, 1e-12))


def searched(layers: Layers, run: Path) -> Table:
    """Evaluations of every layer, kept in `run`; an interrupted search goes on there."""
    run.mkdir(parents=True, exist_ok=True)
    record = Record(RunFolder(run).evaluations_file)
    start = time.monotonic()
    families = [family for family in SEARCHED if family in FAMILIES]
    for trials in TRIALS:
        search_model(layers, families, trials, record=record)
        if time.monotonic() - start > SECONDS:
            break
    return _table(layers, record)


def stored(layers: Layers, run: Path) -> Table | None:
    """Evaluations of every layer that a search left in `run`; None if there are none of some layer."""
    path = RunFolder(run).evaluations_file
    found = _table(layers, Record(path)) if path.is_file() else {}
    return found if found and all(found.values()) else None


def _table(layers: Layers, record: Record) -> Table:
    return {layer.name: [e for e in record.of(layer.content_hash) if not e.failure] for layer in layers}


def with_ranks(layers: Layers, table: Table) -> Table:
    """The table with low rank of `RANKS` ranks more, whose errors and latencies are forecasts: exact on the inputs."""
    found = dict(table)
    for layer in layers:
        known = table[layer.name]
        most = (low_rank.flops(layer, None) - 1) // low_rank.flops(layer, 1)
        ranks = sorted({max(1, round(most * i / RANKS)) for i in range(1, RANKS + 1)})
        found[layer.name] = known + [low_rank.evaluation(layer, rank, known[0]) for rank in ranks]
    return found


def planned(task: Task, layers: Layers, table: Table, budget: float, method: str) -> Row:
    """A row; where the table does not reach the budget, without a score."""
    start = time.perf_counter()
    row: Row = {"task": task.name, "flops": budget, "method": method}
    chosen = plan_for(table, budget)
    if chosen is None:
        return row | {"note": "not reached"}
    model = apply_(copy.deepcopy(task.model), chosen, layers)
    return row | task.measured(model) | {"damage": chosen.damage, **_ratios(chosen), "seconds": _since(start)}


def plan_for(table: Table, budget: float) -> Plan | None:
    """The plan of least damage at any latency; None if the table does not reach the budget."""
    try:
        return plan(table, {"flops": budget, "latency": math.inf})
    except BadInput:
        return None


def _ratios(plan: Plan) -> Row:
    return {f"{quantity} over dense": ratio for quantity, ratio in plan.ratios.items()}


def _since(start: float) -> float:
    return time.perf_counter() - start
