"""Overhead of wandb logging during a search, and resident memory over a thousand evaluations."""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from basis_search.errors import BadInput
from basis_search.evaluation.pareto import ParetoFront
from basis_search.layers.layer import Layer
from basis_search.monitor import wandb_logger
from basis_search.planning.plan import plan
from basis_search.study.search import search
from basis_search.workers.evaluation_log import Record
from basis_search.workers.run_folder import RunFolder

Rows = list[dict[str, Any]]
EVALUATIONS, LIMIT = 1000, 0.02


def _layer(name: str, out: int, features: int, rows: int, seed: int) -> Layer:
    torch.manual_seed(seed)
    mixing = torch.randn(features, features) / features**0.5
    inputs = torch.randn(rows, features) @ mixing
    return Layer.from_linear(torch.nn.Linear(features, out), inputs, name, batch=rows // 4)


def tracking_cost(device: str, threads: int) -> Rows:
    """Wall time spent in wandb, offline: its start, every evaluation, tables, plots; limit 2 % of the search."""
    layers = [_layer(f"blocks.{i}", 512, 256, 4096, i) for i in range(3)]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        run.mkdir()
        record, fronts = Record(RunFolder(run).evaluations_file), dict[str, ParetoFront]()
        begun = time.perf_counter()
        tracker = wandb_logger.start("offline", run, {"seed": 0}, record)
        with tracker:
            started = time.perf_counter() - begun

            def watch(evaluation: Any) -> None:
                name = evaluation.candidate.layer
                fronts[name] = fronts.get(name, ParetoFront()).add(evaluation)
                tracker.evaluation(evaluation, fronts)

            for layer in layers:
                search(layer, trials=16, storage=run / "journal", record=record, watch=watch, threads=threads)
            before = tracker.seconds
            plans = []
            for limit in (0.75, 0.5):
                try:
                    plans.append(plan(fronts, {"flops": limit}))
                except BadInput as problem:
                    print(problem)
            tracker.finish(fronts, plans)
        wall = time.perf_counter() - begun
        size = sum(path.stat().st_size for path in (run / "wandb").rglob("*") if path.is_file())
    return [
        {
            "case": f"3 layers, {len(record)} evaluations, offline",
            "wall": wall,
            "start": started,
            "a row": (before - started) / max(len(record), 1),
            "finish": tracker.seconds - before,
            "share": tracker.seconds / wall,
            "share without start and finish": (before - started) / wall,
            "limit": LIMIT,
            "wandb's own CPU": resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime,
            "bytes": size,
        }
    ]


def memory(device: str, threads: int) -> Rows:
    """Resident memory of one process while it makes a thousand evaluations, with journal and record on disk."""
    rows: Rows = []
    with tempfile.TemporaryDirectory() as folder:
        record, number, next_row = Record(RunFolder(folder).evaluations_file), 0, 100
        while len(record) < EVALUATIONS:
            layer = _layer(f"layer {number}", 96, 96, 512, number)
            search(layer, trials=12, storage=Path(folder) / "journal", record=record, threads=threads)
            number += 1
            if len(record) >= next_row:
                rows.append({"case": "evaluations", "count": len(record), "resident MiB": _resident() / 2**20})
                next_row = len(record) + 100
    first, last = rows[0], rows[-1]
    grown = (last["resident MiB"] - first["resident MiB"]) * 1024 / (last["count"] - first["count"])
    return [*rows, {"case": "growth, KiB an evaluation", "count": last["count"], "KiB": grown}]


def _resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise BadInput("resident memory is read from /proc/self/status, which this system lacks; use Linux")
