"""Benchmarks of the search: seconds of plan() and import, overhead of an evaluation, and the list of parts."""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from basis_search.bench.search import (
    capture_cost,
    hypervolume,
    logging_overhead,
    model,
    optuna_samplers,
    parallel_workers,
)
from basis_search.evaluation.candidate import Candidate, Evaluation
from basis_search.evaluation.pareto import ParetoFront
from basis_search.evaluation.timing import fingerprint
from basis_search.families import lowrank
from basis_search.families.protocol import Cost
from basis_search.layers.layer import Layer
from basis_search.planning.plan import plan
from basis_search.study.search import search
from basis_search.workers.evaluation_log import Record
from basis_search.workers.run_folder import RunFolder

Rows = list[dict[str, Any]]
LAYERS, CANDIDATES = 24, 60


def plan_seconds(device: str, threads: int) -> Rows:
    """Seconds of plan() for 24 layers of 60 Pareto-optimal candidates each, over six budgets; limit 1 s."""
    rng = random.Random(0)
    fronts = [_front(f"layer{index}", rng, device, threads) for index in range(LAYERS)]
    rows = []
    for quantity in ("flops", "latency"):
        for fraction in (0.75, 0.5, 0.33):
            start = time.perf_counter()
            found = plan(fronts, {quantity: fraction})
            seconds = time.perf_counter() - start
            case = f"{LAYERS} layers x {CANDIDATES} candidates, {quantity} {fraction}"
            rows.append({"case": case, "seconds": seconds, "limit": 1.0, "reached": found.ratios[quantity]})
    return rows


def _front(name: str, rng: random.Random, device: str, threads: int) -> ParetoFront:
    dense, sensitivity = Cost(flops := rng.randint(10**7, 10**9), flops, 0, 1, flops), rng.uniform(0.1, 10)
    there = fingerprint(torch.device(device), threads)
    evaluations = []
    for rank in range(1, CANDIDATES + 1):
        share = rank / CANDIDATES  # more FLOPs, less error: none dominates another
        cost = Cost(amount := int(flops * share), amount, 0, 1, amount)
        error = (1 - share) ** 2 * rng.uniform(0.95, 1.05) + (CANDIDATES - rank) * 1e-6
        ratio = share * rng.uniform(0.8, 1.6)
        evaluations.append(
            Evaluation(
                Candidate(name, "lowrank", lowrank.Spec(rank=rank)), error, 0.0, "torch", ratio * 1e-3, ratio, 0.0,
                cost, dense, there, sensitivity, name,
            )
        )  # fmt: skip
    return ParetoFront(tuple(evaluations))


def import_seconds(device: str, threads: int) -> Rows:
    """Seconds of `import basis_search` in a new process beyond `import torch`; medians of 7; limit 0.3 s."""
    samples: dict[str, list[float]] = {"torch": [], "basis_search": [], "basis_search and search, plan, capture": []}
    code = {
        "torch": "import torch",
        "basis_search": "import torch, basis_search",
        "basis_search and search, plan, capture": "import torch, basis_search as b; b.search, b.plan, b.capture",
    }
    for _ in range(7):
        for name, text in code.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", text], check=True)
            samples[name].append(time.perf_counter() - start)
    base = statistics.median(samples["torch"])
    return [
        {"case": f"import {name}", "seconds": (median := statistics.median(values)), "beyond torch": median - base}
        for name, values in samples.items()
    ]


def overhead(device: str, threads: int) -> Rows:
    """Share of a search's wall time outside fit, check and timing: optuna, its journal, the log; limit 5 %."""
    rows = []
    for out, features in ((512, 128), (1024, 256)):
        torch.manual_seed(0)
        mixing = torch.randn(features, features) / features**0.5
        layer = Layer.from_linear(torch.nn.Linear(features, out), torch.randn(4096, features) @ mixing, batch=1024)
        with tempfile.TemporaryDirectory() as folder:
            record = Record(RunFolder(folder).evaluations_file)
            start = time.perf_counter()
            search(layer, trials=16, storage=Path(folder) / "journal", record=record, threads=threads)
            wall = time.perf_counter() - start
        work = sum(sum(e.seconds.values()) for e in record)
        families = {e.candidate.family for e in record}
        rows.append(
            {
                "case": f"{features} -> {out}, {len(families)} families, {len(record)} evaluations",
                "wall": wall,
                "fit, gate, clock": work,
                "overhead": (wall - work) / wall,
                "limit": 0.05,
            }
        )
    return rows


PARTS: dict[str, Callable[..., Rows]] = {
    "workers": parallel_workers.workers,
    "trials": parallel_workers.trials,
    "kills": parallel_workers.kills,
    "crowd": parallel_workers.crowd,
    "hypervolume": hypervolume.hypervolume_table,
    "samplers": optuna_samplers.sampler_table,
    "plan": plan_seconds,
    "import": import_seconds,
    "overhead": overhead,
    "capture": capture_cost.capture_seconds,
    "capture-large": capture_cost.capture_seconds_of_a_large_model,
    "tracking": logging_overhead.tracking_cost,
    "memory": logging_overhead.memory,
    "model": model.model_search,
    "model-plans": model.model_plans,
    "model-quality": model.model_quality,
    "model-latency": model.model_latency,
}
