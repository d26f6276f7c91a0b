"""The main job on two layers, end to end: python -m basis_search.bench.main_job FILE [--device cuda] [--features 1024]

Captures a model of two linear layers, features -> 4 features -> features, searches every family, plans, replaces, saves
and loads. It fails where a family has no finite error or no timed kernel. Results are written to FILE as they come.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import basis_search as bs
from basis_search.bench.timed_parts import PartFile
from basis_search.families import FAMILIES

OPTIONAL = ("fp8", "sparse24", "weight_only", "int8")
"""Families that refuse devices which lack their instructions, with the reason; the others must run."""
WRONG = " is off by "
"""Part of the reason of an operator that runs and is wrong, which no family may have."""
FEW_ROWS = {"weight_only": 16}
"""Rows of a call for families that refuse many."""
BATCHES = 4


def a_model(features: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(features, 4 * features), nn.GELU(), nn.Linear(4 * features, features))


def run(file: PartFile, device: str, dtype: torch.dtype, features: int, rows: int) -> list[str]:
    """Returns a sentence for everything that went wrong."""
    start = time.perf_counter()
    model = a_model(features).to(device, dtype)
    draw = torch.Generator().manual_seed(1)
    mix = torch.randn(features, features, generator=draw) * torch.linspace(1, 0.05, features) / features**0.5
    batches = [(torch.randn(rows, features, generator=draw) @ mix).to(device, dtype) for _ in range(BATCHES)]
    layers = bs.capture(model, batches, samples=2 * rows)
    file.add("capture", {"seconds": time.perf_counter() - start, "devices": sorted({str(x.device) for x in layers})})
    problems = [f"{x.name} was captured on {x.device}" for x in layers if x.device.type != torch.device(device).type]
    folder = file.path.with_suffix("")  # of the evaluations, by which a search goes on
    folder.mkdir(exist_ok=True)
    found: dict[str, list[bs.Evaluation]] = {layer.name: [] for layer in layers}
    refused: dict[str, str] = {}
    for family in FAMILIES:
        record = bs.Record(folder / f"{family}.jsonl")
        for captured in layers:
            layer = dataclasses.replace(captured, batch=min(captured.batch, FEW_ROWS.get(family, rows)))
            key = f"{family} {layer.in_features} -> {layer.out_features}"
            outcome = _searched(layer, family, record)
            file.add(key, outcome)
            found[layer.name] += [e for e in record.of(captured.content_hash) if e.failure is None]
            if "reason" in outcome:
                excused = outcome["refused"] and family in OPTIONAL and WRONG not in outcome["reason"]
                refused |= {family: outcome["reason"]} if excused else {}
                problems += [] if excused else [f"{key}: {outcome['reason']}"]
    try:
        file.add("replace", _replaced(model, batches[0], layers, found))
    except bs.BadInput as refusal:
        problems.append(f"plan: {refusal}")
    timed = sum("latency" in outcome for outcome in file.results.values())
    without = f", refused: {', '.join(refused)}" if refused else ""
    where = f"{device} in {str(dtype).removeprefix('torch.')}"
    file.summarise(f"{timed} of {2 * len(FAMILIES)} cases timed on {where}{without}")
    print("\n".join(refused.values()))
    return problems


def _searched(layer: bs.Layer, family: str, record: bs.Record) -> dict[str, Any]:
    """The best evaluation of two trials: or the reason why there is none."""
    start = time.perf_counter()
    try:
        bs.search(layer, (family,), trials=2, record=record)
    except bs.BadInput as refusal:
        return {"refused": True, "reason": str(refusal)}
    every = list(record.of(layer.content_hash))
    good = [e for e in every if e.failure is None and math.isfinite(e.error) and e.latency > 0]
    if not good:
        reasons = "; ".join(dict.fromkeys(str(e.failure) for e in every))
        return {"refused": False, "reason": f"no candidate has a finite error and a timed kernel ({reasons})"}
    best = min(good, key=lambda e: e.latency_ratio)
    return {
        "kernel": best.kernel, "error": best.error, "latency": best.latency, "latency_ratio": best.latency_ratio,
        "latency_graph": best.latency_graph, "host_seconds": best.host_seconds, "fit": best.seconds.get("fit"),
        "seconds": time.perf_counter() - start,
    }  # fmt: skip


@torch.no_grad()
def _replaced(
    model: nn.Module, x: torch.Tensor, layers: bs.Layers, found: dict[str, list[bs.Evaluation]]
) -> dict[str, Any]:
    """Plans, replaces the model's layers, saves and loads them; the relative squared difference of the output."""
    start, dense = time.perf_counter(), model(x).double()
    fronts = {layer.name: bs.ParetoFront.of(found[layer.name], layer) for layer in layers}
    plan = bs.plan(fronts, {"flops": 0.9, "latency": math.inf})
    bs.apply_(model, plan)
    y = model(x)
    with tempfile.TemporaryDirectory() as folder:
        bs.save_pretrained(model, folder)
        again = bs.load_pretrained(a_model(x.shape[1]).to(x.device, x.dtype), folder)
    same = bool(torch.equal(again(x), y))
    difference = float((y.double() - dense).square().sum() / dense.square().sum())
    assert same, "the exported model computes something else than the replaced one"
    families = [layer.family for layer in model.modules() if isinstance(layer, bs.StructuredLinear)]
    return {"families": families, "difference": difference, "seconds": time.perf_counter() - start}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--features", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=2048, help="of one call")
    options = parser.parse_args(arguments)
    file = PartFile(options.file)
    problems = run(file, options.device, getattr(torch, options.dtype), options.features, options.rows)
    print("\n".join(problems) or "the main job ran")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
