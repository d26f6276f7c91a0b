"""A whole model searched: a 6-block encoder of MiniLM's shape, its plans, and what the replaced model really takes.

predicted latency = dense model - sum of dense layers + sum of chosen layers
"""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from basis_search.bench.encoder import Encoder, sentences
from basis_search.captured import Layers
from basis_search.record import Record
from basis_search.recording import capture
from basis_search.whole_model import search_model

Rows = list[dict[str, Any]]
FOLDER = Path("runs/minilm")
BATCH, BATCHES, TRIALS, WORKERS = 8, 8, 6, 2


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def model_search(device: str, threads: int) -> Rows:
    """Capture and search of all 36 layers by two workers, into runs/minilm; a search that was begun goes on."""
    model = Encoder()
    start, cpu = time.perf_counter(), _cpu_seconds()
    layers = captured(model)
    rows = [_spent("capture and sensitivities", len(layers), start, cpu)]
    start, cpu = time.perf_counter(), _cpu_seconds()
    record = Record(FOLDER / "evaluations.jsonl")
    before = len(record)
    search_model(layers, trials=TRIALS, workers=WORKERS, threads=threads, record=record)
    rows.append(_spent(f"search, {WORKERS} workers, {TRIALS} trials per family", len(record) - before, start, cpu))
    work = {k: sum(e.seconds.get(k, 0.0) for e in record) for k in ("fit", "gate", "clock")}
    timed = sum("clock" in e.seconds for e in record)
    failures = sum(e.failure is not None for e in record)
    rows.append({"case": "in all evaluations", "count": len(record), **work, "timed": timed, "failures": failures})
    return rows


def _spent(case: str, count: int, start: float, cpu: float) -> dict[str, Any]:
    return {"case": case, "count": count, "seconds": time.perf_counter() - start, "CPU seconds": _cpu_seconds() - cpu}


def captured(model: Encoder) -> Layers:
    """The encoder's layers on calibration sentences; sensitivity is the loss of cosine similarity of its answers."""
    if (FOLDER / "layers" / "layers.json").is_file():
        return Layers.load(FOLDER / "layers")
    batches = list(sentences(BATCH * BATCHES, seed=1).split(BATCH))
    with torch.no_grad():
        answers = {id(batch): model(batch) for batch in batches}

    def loss(student: nn.Module, batch: Tensor) -> Tensor:
        return (1 - (student(batch) * answers[id(batch)]).sum(-1)).mean()

    layers = capture(model, batches, "re:blocks.*", samples=4096, loss=loss)
    layers.save(FOLDER / "layers")
    return layers


if __name__ == "__main__":
    print(model_search("cpu", 1))
