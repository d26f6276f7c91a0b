"""The contents of a run folder: its evaluations, fronts, plans, summary and settings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from basis_search.errors import BadInput
from basis_search.evaluation.candidate import Evaluation
from basis_search.evaluation.pareto import ParetoFront
from basis_search.workers.evaluation_log import Entry
from basis_search.workers.redaction import redacted
from basis_search.workers.run_folder import RunFolder

AMOUNTS = ("flops", "latency", "parameters")


@dataclass(frozen=True)
class PlanEntry:
    """One candidate per layer for one budget.

    Attributes:
        totals, dense: sums over the replaced layers, per forward pass.
        unlimited: damage and latency ratio without the limit of latency, if that limit costs damage.
    """

    name: str
    budget: Mapping[str, float]
    choices: Mapping[str, Evaluation]
    totals: Mapping[str, float]
    dense: Mapping[str, float]
    ratios: Mapping[str, float]
    unlimited: tuple[float, float] | None = None


@dataclass(frozen=True)
class Point:
    """The whole model as measured with one plan; `metric_tuned` is after fine-tuning."""

    name: str
    kind: str
    budget: Mapping[str, float]
    metric: float
    metric_tuned: float | None
    flops: float
    latency: float
    parameters: float
    flops_ratio: float
    latency_ratio: float


@dataclass(frozen=True)
class Summary:
    """Measurements of the whole model; `dense` has metric, flops, latency (seconds) and parameters."""

    model: str
    metric: str
    dense: Mapping[str, float]
    points: tuple[Point, ...]
    timing: Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """The contents of a run folder; `notes` are sentences on missing or damaged files."""

    path: Path
    config: str
    entries: tuple[Entry, ...]
    fronts: Mapping[str, ParetoFront]
    plans: tuple[PlanEntry, ...]
    summary: Summary | None
    notes: tuple[str, ...]

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        return tuple(entry.evaluation for entry in self.entries)

    @property
    def has_model(self) -> bool:
        """There are plans, or measurements of the whole model."""
        return self.summary is not None or bool(self.plans)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers in the order of front.json, which is the model's; others by their first evaluation."""
        evaluated = dict.fromkeys(e.candidate.layer for e in self.evaluations)
        return tuple(dict.fromkeys([*(name for name in self.fronts if name in evaluated), *evaluated]))


def read(path: Path | str) -> Run:
    """Reads the run folder at `path`, finished or not.

    Raises:
        BadInput: there is none, nothing was evaluated in it, a newer version wrote it, or a file is malformed.
    """
    folder = RunFolder(path)
    folder.check_evaluated()
    entries, notes = _entries(folder.evaluations_file)
    if folder.front_file.is_file():
        fronts = folder.front()
    else:
        notes.append(
            f"There is no {folder.front_file.name} yet (the search is running or was stopped): the fronts are those of "
            "the evaluations so far."
        )
        layers = dict.fromkeys(e.evaluation.candidate.layer for e in entries)
        fronts = {
            name: ParetoFront.of(e.evaluation for e in entries if e.evaluation.candidate.layer == name)
            for name in layers
        }
    plans, summary = _plans(folder), _summary(folder)
    if plans is None:
        notes.append(f"There is no {folder.plans_file.name}: no plan has been made for this run yet.")
    if summary is None:
        notes.append(
            f"There is no {folder.summary_file.name}, so the model itself was not measured: the whole-model plots show "
            "the predicted damage, summed over the layers, instead of the model's metric."
        )
    config = folder.config_file
    text = config.read_text(encoding="utf-8", errors="replace") if config.is_file() else ""
    return Run(folder.path, redacted(text), entries, fronts, plans or (), summary, tuple(notes))


def _entries(path: Path) -> tuple[tuple[Entry, ...], list[str]]:
    """The complete lines of an evaluation log, and notes on damaged ones."""
    entries, damaged = [], []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except json.JSONDecodeError:
            damaged.append(number)
            continue
        try:
            entry = Entry.from_json(data)
            if not all(value >= 0 for value in entry.evaluation.objectives):
                raise BadInput(f"its error, FLOPs ratio and latency ratio are {entry.evaluation.objectives}")
        except (BadInput, ZeroDivisionError) as problem:
            raise BadInput(f"{path}, line {number}: {problem}") from problem
        entries.append(entry)
    if not entries:
        raise BadInput(f"{path} holds no evaluation; run the search until at least one candidate has been evaluated")
    notes = []
    if damaged == [len(lines)]:
        notes.append(f"Line {len(lines)} of {path.name}, the last, is incomplete, as after a crash, and was skipped.")
    elif damaged:
        shown = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        notes.append(f"{len(damaged)} damaged lines of {path.name} were skipped: {shown}.")
    return tuple(entries), notes


def _plans(folder: RunFolder) -> tuple[PlanEntry, ...] | None:
    if not folder.plans_file.is_file():
        return None
    try:
        return tuple(
            PlanEntry(
                str(plan["name"]),
                _numbers(plan["budget"]),
                {str(layer): Evaluation.from_json(e) for layer, e in plan["choices"].items()},
                _numbers(plan["totals"], (*AMOUNTS, "damage")),
                _numbers(plan["dense"], AMOUNTS),
                _numbers(plan["ratios"], AMOUNTS),
                _unlimited(plan.get("latency_limit")),
            )
            for plan in folder.plans()
        )
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise BadInput(f"{folder.plans_file} holds no plans of basis_search: {problem!r}") from problem


def _unlimited(limit: Mapping[str, Any] | None) -> tuple[float, float] | None:
    return None if limit is None else (float(limit["damage_without"]), float(limit["latency_without"]))


def _summary(folder: RunFolder) -> Summary | None:
    if not folder.summary_file.is_file():
        return None
    data = folder.summary()
    try:
        points = tuple(
            Point(
                name=str(p["name"]),
                kind=str(p["kind"]),
                budget=_numbers(p.get("budget") or {}),
                metric_tuned=None if p.get("metric_tuned") is None else float(p["metric_tuned"]),
                **{k: float(p[k]) for k in (*AMOUNTS, "metric", "flops_ratio", "latency_ratio")},
            )
            for p in data["points"]
        )
        return Summary(
            str(data["model"]), str(data["metric"]), _numbers(data["dense"], ("metric", *AMOUNTS)), points,
            dict(data.get("timing") or {}),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise BadInput(f"{folder.summary_file} is not a summary of basis_search: {problem!r}") from problem


def _numbers(data: Mapping[str, Any], needed: Sequence[str] = ()) -> dict[str, float]:
    """The numbers of an object. Raises KeyError or ValueError where a needed one is missing or not finite."""
    numbers = {str(key): float(value) for key, value in data.items() if value is not None}
    for key in needed:
        if not math.isfinite(numbers[key]):
            raise ValueError(f"{key} is {numbers[key]}")
    return numbers
