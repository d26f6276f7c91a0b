"""A run folder with made-up measurements, in the format that a search writes, for tests of its readers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any

from basis_search.evaluation.candidate import Candidate, Evaluation
from basis_search.evaluation.pareto import ParetoFront
from basis_search.evaluation.timing import Device
from basis_search.families import FAMILIES
from basis_search.families.protocol import Cost, spec_to_json
from basis_search.layers.layer import LayerShape

DEVICE = Device("Test processor", 2, "avx2", 1, "2.13.0")
SHAPE = LayerShape(256, 256, 1000)


def an_evaluation(layer: str, family: str = "dense", spec: dict[str, Any] | None = None, **changes: Any) -> Evaluation:
    dense_cost = Cost(65_000_000, 65_000_000, 0, 2_000_000, 65_664)
    made = FAMILIES[family].Spec(**(spec or {}))
    values: dict[str, Any] = {
        "error": 0.0, "gap": 1e-7, "kernel": "torch", "latency": 2e-3, "latency_ratio": 1.0, "latency_spread": 0.05,
        "cost": dense_cost, "dense_cost": dense_cost, "device": DEVICE, "sensitivity": 1.0,
        "layer_hash": hashlib.sha256(layer.encode()).hexdigest(),
        "seconds": {"fit": 0.2, "gate": 0.1, "clock": 0.3},
    }  # fmt: skip
    return Evaluation(Candidate(layer, family, made), **(values | changes))


def made_up(rng: random.Random, layer: str, family: str, spec: Any) -> Evaluation:
    """Made-up measurements of a candidate with its real cost: dense is exact, a few of the others fail."""
    cost, dense_cost = FAMILIES[family].cost(spec, SHAPE), FAMILIES["dense"].cost(FAMILIES["dense"].Spec(), SHAPE)
    costs = {"cost": cost, "dense_cost": dense_cost}
    if family != "dense" and rng.random() < 0.05:
        gap = 10 ** rng.uniform(-4, -2)
        return an_evaluation(
            layer, family, spec_to_json(spec), error=math.inf, gap=math.inf, kernel="", latency=math.inf,
            latency_ratio=math.inf, latency_spread=math.inf, **costs, seconds={"fit": 0.4, "gate": 0.05},
            failure=f"kernel 'cpu-avx2' differs from its reference by {gap:.2e}; rounding explains at most 1.40e-06",
        )  # fmt: skip
    share = cost.flops / dense_cost.flops
    ratio = 1.0 if family == "dense" else share**0.7 * math.exp(rng.gauss(0.2, 0.4))
    error = 0.0 if family == "dense" else 0.03 * share**-2 * math.exp(rng.gauss(0, 0.7))
    return an_evaluation(
        layer, family, spec_to_json(spec), error=error, latency=2e-3 * ratio, latency_ratio=ratio,
        latency_spread=abs(rng.gauss(0.05, 0.03)), **costs, sensitivity=rng.uniform(0.5, 3), kernel="torch",
        seconds={"fit": rng.uniform(0.05, 0.6), "gate": rng.uniform(0.02, 0.1), "clock": rng.uniform(0.1, 0.4)},
    )  # fmt: skip


def a_run(
    folder: Path, *, layers: int = 2, trials: int = 6, workers: int = 2, seed: int = 0, measured: bool = True
) -> Path:
    """Writes a run folder with made-up measurements of every family's examples."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    parts = ("attention.qkv", "attention.output", "mlp.up", "mlp.down")
    names = [f"blocks.{i // 4}.{parts[i % 4]}" for i in range(layers)]
    lines, fronts, clock = [], {}, [1_700_000_000.0 + 0.3 * w for w in range(workers)]
    for name in names:
        done = []
        for family in FAMILIES:
            for trial, spec in enumerate(FAMILIES[family].examples(SHAPE)[:trials]):
                worker = min(range(workers), key=clock.__getitem__)
                e = made_up(rng, name, family, spec)
                done.append(e)
                began, clock[worker] = clock[worker], clock[worker] + sum(e.seconds.values()) + 0.02
                lines.append(
                    e.to_json() | {"worker": worker, "trial": trial, "started": began, "finished": clock[worker] - 0.01}
                )
        fronts[name] = ParetoFront.of(done)
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    front = {"schema_version": 1, "layers": {n: [e.to_json() for e in f.evaluations] for n, f in fronts.items()}}
    (folder / "front.json").write_text(json.dumps(front))
    budgets = [("flops", b) for b in (0.75, 0.5, 0.33, 0.25)] + [("latency", b) for b in (0.75, 0.5)]
    plans = [a_plan(key, budget, fronts) for key, budget in budgets]
    (folder / "plans.json").write_text(json.dumps({"schema_version": 1, "plans": plans}))
    (folder / "config.yaml").write_text("seed: 0\ntrials: 6\nfamilies: [dense, stl]\nbatch: 1024\ndtype: float32\n")
    if measured:
        (folder / "summary.json").write_text(json.dumps(a_summary(plans)))
    return folder


def a_plan(key: str, budget: float, fronts: dict[str, ParetoFront]) -> dict[str, Any]:
    axis = {"flops": lambda e: e.flops_ratio, "latency": lambda e: e.latency_ratio}[key]
    chosen = {
        name: min(front.evaluations, key=lambda e: (axis(e) > budget, e.error if axis(e) <= budget else axis(e)))
        for name, front in fronts.items()
    }
    totals = {
        "flops": sum(e.cost.flops for e in chosen.values()),
        "latency": sum(e.latency for e in chosen.values()),
        "parameters": sum(e.cost.parameters for e in chosen.values()),
        "damage": sum(e.sensitivity * e.error for e in chosen.values()),
    }
    dense = {
        "flops": sum(e.dense_cost.flops for e in chosen.values()),
        "latency": sum(e.latency / e.latency_ratio for e in chosen.values()),
        "parameters": sum(e.dense_cost.parameters for e in chosen.values()),
        "damage": 0.0,
    }
    return {
        "name": f"{key}-{budget:.2f}", "budget": {key: budget}, "totals": totals, "dense": dense,
        "choices": {name: e.to_json() for name, e in chosen.items()},
        "ratios": {k: totals[k] / dense[k] for k in ("flops", "latency", "parameters")},
    }  # fmt: skip


def a_summary(plans: list[dict[str, Any]]) -> dict[str, Any]:
    dense = {"metric": 0.978, "flops": 2.1e9, "latency": 31e-3, "parameters": 812_000.0}

    def point(name: str, kind: str, budget: Any, flops: float, latency: float, loss: float) -> dict[str, Any]:
        return {
            "name": name, "kind": kind, "budget": budget, "metric": 0.978 - loss, "metric_tuned": 0.978 - loss / 12,
            "flops": dense["flops"] * flops, "latency": dense["latency"] * latency,
            "parameters": dense["parameters"] * flops, "flops_ratio": flops, "latency_ratio": latency,
        }  # fmt: skip

    points = [point(p["name"], "plan", p["budget"], p["ratios"]["flops"] * 0.97 + 0.03,
                    p["ratios"]["latency"] * 0.9 + 0.1, min(0.6, p["totals"]["damage"] / 20))
              for p in plans]  # fmt: skip
    points += [
        point(f"lowrank-{b:.2f}", "lowrank", {"flops": b}, b, b * 1.1, 0.05 / b**2) for b in (0.75, 0.5, 0.33, 0.25)
    ]
    points.append(point("int8", "int8", {}, 1.0, 0.62, 0.002))
    return {
        "schema_version": 1, "model": "small vision transformer on digits", "metric": "test accuracy", "dense": dense,
        "points": points, "timing": {"threads": 1, "batch": 64, "device": dataclasses.asdict(DEVICE)},
    }  # fmt: skip
