"""Finish a run: its last worker writes fronts, plans, exported layers and the report. Export other plans of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from basis_search import report
from basis_search.config import SearchConfig
from basis_search.errors import BadInput
from basis_search.evaluation import constraints
from basis_search.evaluation.candidate import Evaluation
from basis_search.evaluation.fitted_store import FittedStore
from basis_search.evaluation.pareto import ParetoFront
from basis_search.evaluation.timing import EAGER, GRAPH, fingerprint
from basis_search.layers.collection import Layers
from basis_search.planning.budget import budgets_of, max_latency_of
from basis_search.planning.plan import Plan, latency_cost, plan_within
from basis_search.planning.table import Fronts, PlanTable
from basis_search.replacement.export import save_plan
from basis_search.workers.evaluation_log import Record, open_log
from basis_search.workers.run_folder import RunFolder
from basis_search.workers.worker import Worker


def finish(run: Path, layers: Layers, record: Record, config: SearchConfig) -> list[Plan]:
    """Writes front.json, plans.json, the exported plans and the report.

    Args:
        run: the run folder.
        layers: those searched.
        record: all evaluations of the run.
        config: the search's.

    Returns:
        The plans, one for each budget that can be met.
    """
    record.refresh()
    folder = RunFolder(run)
    fronts: dict[str, ParetoFront] = {}
    table: dict[str, list[Evaluation]] = {}
    for layer in layers:
        worker = Worker(record, threads=config.threads, clock=config.clock)
        within = [e for e in worker.evaluations_of(layer) if constraints.kept(config.limits, e)]
        front = ParetoFront.of(within, layer)
        if front.evaluations:
            fronts[layer.name], table[layer.name] = front, within
    if elsewhere := {e.device for e in record} - {fingerprint(layer.device, config.threads) for layer in layers}:
        names = ", ".join(sorted(device.name for device in elsewhere))
        print(
            f"evaluations measured on {names} are in the record and on no front: a latency holds for one device alone"
        )
    if not fronts:
        print("nothing was evaluated yet: no front, no plan")
        return []
    folder.write_front(fronts)
    plans = []
    max_latency = math.inf if config.max_latency is None else config.max_latency
    for budget in budgets_of(config.budgets):
        try:
            plans.append(plan_within(table if config.groups else fronts, budget, max_latency, config.groups))
        except BadInput as problem:
            print(f"no plan: {problem}")
    for cost in filter(None, map(latency_cost, plans)):
        print(cost)
    folder.write_plans([p.to_json() for p in plans])
    fitted = FittedStore(folder.fitted)
    fitted.remove_drafts()  # no other worker is evaluating
    fitted.offer(e for chosen in plans for e in chosen.choices.values())
    if config.export:
        for chosen in tqdm(plans, desc="export", unit="plan"):
            save_plan(chosen, folder.exports / chosen.name, layers, provenance={"run": run.name, "seed": config.seed})
    if config.report:
        print(f"report: {report.write(run)}")
    return plans


def read_plans(run: Path, layers: Layers) -> list[Plan]:
    """The plans of a finished run, with the captured layers and stored parameters that `apply_` needs.

    Raises:
        BadInput: the folder holds no plans, or they are damaged or of another program.
    """
    folder = RunFolder(run)
    try:
        plans = [Plan.from_json(data, layers) for data in folder.plans()]
    except BadInput as problem:
        raise problem if str(folder.path) in str(problem) else BadInput(f"{folder.plans_file}: {problem}") from problem
    FittedStore(folder.fitted).offer(e for plan in plans for e in plan.choices.values())
    if not folder.front_file.is_file():  # the plans alone, without what they were chosen from
        return plans
    config = folder.config()
    table = PlanTable(
        {name: front.evaluations for name, front in folder.front().items()},
        tuple(config.get("groups") or ()),
        max_latency_of(config),
    )
    return [dataclasses.replace(plan, table=table) for plan in plans]


def export_run(
    run: Path, budget: Mapping[str, float], out: Path, layers: Path | None = None, groups: Sequence[str] = ()
) -> Plan:
    """Plans for a budget from a finished run's fronts and writes the chosen layers to `out`.

    Their parameters are those that the search stored; what is missing is fitted again.

    Args:
        run: the run folder.
        budget: as for `plan`; if it names no latency, the run's `max_latency` is the limit.
        out: directory to write.
        layers: directory of the captured layers; by default the one that the run's config names.
        groups: as for `plan`; by default the run's.

    Raises:
        BadInput: the run is not finished, its captured layers are missing or changed, or nothing meets the budget.
    """
    folder = RunFolder(run)
    fronts, config = folder.front(), folder.config()
    groups = groups or config.get("groups") or ()
    table: Fronts = _table(folder, fronts, config.get("limits") or {}) if groups else fronts
    chosen = plan_within(table, budget, max_latency_of(config), groups)
    FittedStore(folder.fitted).offer(chosen.choices.values())
    save_plan(chosen, out, Layers.load(layers or _layers_of(folder, config)), provenance={"run": run.name})
    return chosen


def _table(
    folder: RunFolder, fronts: Mapping[str, ParetoFront], limits: Mapping[str, float]
) -> dict[str, list[Evaluation]]:
    """All evaluations of the layers with a front, within the limits: groups have more specs in common there."""
    record = open_log(folder, "in which groups find specs in common", "name a whole run folder")
    table = {}
    for name, front in fronts.items():
        one = front.evaluations[0]
        clock = GRAPH if any(e.timed == GRAPH for e in front.evaluations) else EAGER
        found = [e.timed_by(clock) for e in record.of(one.layer_hash, device=one.device, code=one.code)]
        table[name] = [e for e in found if constraints.kept(limits, e)]
    return table


def _layers_of(folder: RunFolder, config: Mapping[str, Any]) -> Path:
    """The directory of captured layers that the run's config names."""
    directory = config.get("layers")
    if not isinstance(directory, str) or not Path(directory).is_dir():
        raise BadInput(
            f"the captured layers {directory!r} that {folder.config_file} names are not there; pass them with "
            "--layers DIR"
        )
    return Path(directory)
