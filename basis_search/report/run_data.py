"""A run folder as typed values: evaluations.jsonl, front.json, plans.json, summary.json, config.yaml."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from basis_search.errors import BadInput
from basis_search.evaluation.evaluate import SCHEMA_VERSION, Evaluation
from basis_search.evaluation.pareto import ParetoFront
from basis_search.files import check_version, read_json

AMOUNTS = ("flops", "latency", "parameters")


@dataclass(frozen=True)
class Record:
    """One line of evaluations.jsonl; `started` and `finished` in unix seconds, zero where unknown."""

    evaluation: Evaluation
    worker: int = 0
    trial: int = 0
    started: float = 0.0
    finished: float = 0.0
    extra: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class PlanEntry:
    """One candidate per layer for one budget; totals and dense are of the replaced layers, per call."""

    name: str
    budget: Mapping[str, float]
    choices: Mapping[str, Evaluation]
    totals: Mapping[str, float]
    dense: Mapping[str, float]
    ratios: Mapping[str, float]


@dataclass(frozen=True)
class Point:
    """The whole model, measured; `metric_tuned` is after fine-tuning."""

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
    """What was measured of the model itself; `dense` has metric, flops, latency (seconds) and parameters."""

    model: str
    metric: str
    dense: Mapping[str, float]
    points: tuple[Point, ...]
    timing: Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """Everything a report tells; `notes` are sentences on what is missing or damaged."""

    path: Path
    config: str
    records: tuple[Record, ...]
    fronts: Mapping[str, ParetoFront]
    plans: tuple[PlanEntry, ...]
    summary: Summary | None
    notes: tuple[str, ...]

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        return tuple(record.evaluation for record in self.records)

    @property
    def has_model(self) -> bool:
        """There is something to say of the whole model: a plan, or measurements."""
        return self.summary is not None or bool(self.plans)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in the model's order as the fronts have it; others as they first appear."""
        evaluated = dict.fromkeys(e.candidate.layer for e in self.evaluations)
        return tuple(dict.fromkeys([*(name for name in self.fronts if name in evaluated), *evaluated]))


def read(path: Path | str) -> Run:
    """The run folder at `path`, finished or not.

    Raises:
        BadInput: there is none, nothing was evaluated in it, a newer version wrote it, or a file is not ours.
    """
    path = Path(path)
    if not path.is_dir():
        raise BadInput(f"there is no run folder {str(path)!r}; give the folder that a search wrote, like runs/latest")
    if not (path / "evaluations.jsonl").is_file():
        raise BadInput(
            f"{str(path)!r} is no run folder: it holds no evaluations.jsonl; give the folder that a search wrote, "
            "like runs/latest"
        )
    records, notes = _records(path / "evaluations.jsonl")
    fronts = _fronts(path / "front.json")
    if fronts is None:
        notes.append(
            "front.json is not there yet (the search is running or was stopped): the fronts are taken from the "
            "evaluations so far."
        )
        layers = dict.fromkeys(r.evaluation.candidate.layer for r in records)
        fronts = {
            name: ParetoFront.of(r.evaluation for r in records if r.evaluation.candidate.layer == name)
            for name in layers
        }
    plans = _plans(path / "plans.json")
    if plans is None:
        notes.append("plans.json is not there: no plan has been made of this run yet.")
    summary = _summary(path / "summary.json")
    if summary is None:
        notes.append(
            "summary.json is not there, so the model itself was not measured: whole-model plots show the predicted "
            "damage (sensitivity x error, summed over the layers) in place of the model's metric."
        )
    config = path / "config.yaml"
    text = config.read_text(encoding="utf-8", errors="replace") if config.is_file() else ""
    return Run(path, without_passwords(text), records, fronts, plans or (), summary, tuple(notes))


def without_passwords(text: str) -> str:
    """`text` with the password of every URL like scheme://user:password@host replaced by ***."""
    return re.sub(r"(\w+://[^\s:/@]+):[^\s@]+@", r"\1:***@", text)


def _records(path: Path) -> tuple[tuple[Record, ...], list[str]]:
    records, damaged = [], []
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
            evaluation = Evaluation.from_json(data)
            known = ("worker", "trial", "started", "finished")
            times = [float(data.get(key) or 0) for key in known]
            if not all(value >= 0 for value in evaluation.objectives):
                raise BadInput(f"its error, FLOPs ratio and latency ratio are {evaluation.objectives}")
        except (BadInput, TypeError, ValueError, ZeroDivisionError) as problem:
            raise BadInput(f"{path}, line {number}: {problem}") from problem
        records.append(Record(evaluation, int(times[0]), int(times[1]), times[2], times[3], data))
    if not records:
        raise BadInput(f"{path} holds no evaluation; run the search until at least one candidate has been evaluated")
    notes = []
    if damaged == [len(lines)]:
        notes.append(f"Line {len(lines)} of evaluations.jsonl, the last, was cut off, as by a crash; it is left out.")
    elif damaged:
        shown = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        notes.append(f"{len(damaged)} damaged lines of evaluations.jsonl are left out: {shown}.")
    return tuple(records), notes


def _json(path: Path) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    data = read_json(path)
    check_version(data, SCHEMA_VERSION, path)
    result: Mapping[str, Any] = data
    return result


def _fronts(path: Path) -> dict[str, ParetoFront] | None:
    data = _json(path)
    if data is None:
        return None
    try:
        return {
            str(name): ParetoFront(tuple(Evaluation.from_json(e) for e in evaluations))
            for name, evaluations in data["layers"].items()
        }
    except (KeyError, TypeError, AttributeError) as problem:
        raise BadInput(f"{path} is not a front of basis_search: {problem!r}") from problem


def _plans(path: Path) -> tuple[PlanEntry, ...] | None:
    data = _json(path)
    if data is None:
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
            )
            for plan in data["plans"]
        )
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise BadInput(f"{path} holds no plans of basis_search: {problem!r}") from problem


def _summary(path: Path) -> Summary | None:
    data = _json(path)
    if data is None:
        return None
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
        raise BadInput(f"{path} is not a summary of basis_search: {problem!r}") from problem


def _numbers(data: Mapping[str, Any], needed: Sequence[str] = ()) -> dict[str, float]:
    """The numbers of an object. Raises KeyError or ValueError where a needed one is missing or not finite."""
    numbers = {str(key): float(value) for key, value in data.items() if value is not None}
    for key in needed:
        if not math.isfinite(numbers[key]):
            raise ValueError(f"{key} is {numbers[key]}")
    return numbers
