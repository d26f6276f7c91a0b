"""Search of a whole model, a 6-block encoder of MiniLM's shape: plans, quality, measured and predicted latency.

predicted latency = dense model - sum of dense layers + sum of chosen layers
"""

from __future__ import annotations

import copy
import resource
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basis_search.bench.search.encoder import Encoder, sentences
from basis_search.evaluation.timing import measure
from basis_search.files import read_json, write_json
from basis_search.layers.capture import capture
from basis_search.layers.collection import Layers
from basis_search.planning.plan import Plan, plans
from basis_search.replacement.export import load_pretrained, save_plan
from basis_search.replacement.refit import refit
from basis_search.replacement.structured_linear import StructuredLinear
from basis_search.study.model_search import search_model
from basis_search.workers.evaluation_log import Record
from basis_search.workers.run_folder import RunFolder

Rows = list[dict[str, Any]]
FOLDER = Path("runs/minilm")
RUN = RunFolder(FOLDER)
BATCH, BATCHES, TRIALS, WORKERS = 8, 8, 6, 2
BUDGETS = [
    {quantity: fraction}
    for quantity, fractions in (
        ("latency", (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)),
        ("flops", (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)),
        ("parameters", (0.9, 0.7, 0.5, 0.4, 0.3, 0.25)),
    )
    for fraction in fractions
]
MEASURED = ({"latency": 0.6}, {"latency": 0.4}, {"flops": 0.5})
"""Budgets whose plans are built and measured as whole models."""
GROUPS = (r"re:(.*)\.(?:query|key|value)",)


def _cpu_seconds() -> float:
    """CPU seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def model_search(device: str, threads: int) -> Rows:
    """Capture and search of all 36 layers by two workers, into runs/minilm; an interrupted search resumes."""
    model = Encoder()
    start, cpu = time.perf_counter(), _cpu_seconds()
    layers = captured(model)
    rows = [_spent("capture and sensitivities", len(layers), start, cpu)]
    start, cpu = time.perf_counter(), _cpu_seconds()
    record = Record(RUN.evaluations_file)
    before = len(record)
    search_model(layers, trials=TRIALS, workers=WORKERS, threads=threads, record=record)
    rows.append(_spent(f"search, {WORKERS} workers, {TRIALS} trials per family", len(record) - before, start, cpu))
    work = {k: sum(e.seconds.get(k, 0.0) for e in record) for k in ("fit", "gate", "clock")}
    timed = sum("clock" in e.seconds for e in record)
    stopped = sum(e.stopped != "" for e in record)
    failures = sum(e.failure is not None for e in record) - stopped
    rows.append(
        {"case": "in all evaluations", "count": len(record), **work, "timed": timed, "stopped": stopped}
        | {"failures": failures}
    )
    return rows


def _spent(case: str, count: int, start: float, cpu: float) -> dict[str, Any]:
    return {"case": case, "count": count, "seconds": time.perf_counter() - start, "CPU seconds": _cpu_seconds() - cpu}


def captured(model: Encoder) -> Layers:
    """The encoder's layers on calibration sentences; loss: 1 - cosine similarity to the dense model."""
    if (FOLDER / "layers" / "layers.json").is_file():
        return Layers.load(FOLDER / "layers")
    batches = list(sentences(BATCH * BATCHES, seed=1).split(BATCH))  # type: ignore[no-untyped-call]
    with torch.no_grad():
        answers = {id(batch): model(batch) for batch in batches}

    def loss(student: nn.Module, batch: Tensor) -> Tensor:
        lost: Tensor = (1 - (student(batch) * answers[id(batch)]).sum(-1)).mean()
        return lost

    layers = capture(model, batches, "re:blocks.*", samples=4096, loss=loss)
    layers.save(FOLDER / "layers")
    return layers


def _stored() -> tuple[Layers, dict[str, list[Any]]]:
    """The captured layers and their evaluations."""
    layers, record = Layers.load(FOLDER / "layers"), Record(RUN.evaluations_file)
    return layers, {layer.name: record.of(layer.content_hash) for layer in layers}


def model_plans(device: str, threads: int) -> Rows:
    """Twenty budgets from the stored evaluations, with layers free and with query, key and value sharing a spec."""
    _, table = _stored()
    rows: Rows = []
    for case, groups in (("each layer free", ()), ("query, key, value share", GROUPS)):
        start = time.perf_counter()
        found = plans(table, BUDGETS, groups=groups)
        seconds = time.perf_counter() - start
        rows.append({"case": f"{len(found)} plans, {case}", "seconds": seconds, "limit": 5.0})
        for plan in found:
            rows.append({"case": f"{case}: {plan.name}", "damage": plan.damage, **plan.ratios})
    return rows


def exported() -> dict[str, Plan]:
    """The plans to measure, fitted and saved; again where new evaluations have changed the plan."""
    layers, table = _stored()
    stored = read_json(RUN.plans_file) if RUN.plans_file.is_file() else {}
    found = {}
    for plan in plans(table, MEASURED):
        if stored.get(plan.name, {}).get("choices") != plan.to_json()["choices"]:
            save_plan(plan, RUN.exports / plan.name, layers)
            stored[plan.name] = plan.to_json()
            write_json(RUN.plans_file, stored)
        found[plan.name] = plan
    return found


def model_quality(device: str, threads: int) -> Rows:
    """Mean cosine similarity to the dense model on unseen sentences: layers fitted alone, then refitted in order."""
    dense, unseen = Encoder(), sentences(32, seed=2)
    batches = list(sentences(BATCH * BATCHES, seed=1).split(BATCH))  # type: ignore[no-untyped-call]
    with torch.no_grad():
        answers = dense(unseen)

    def similarity(model: nn.Module) -> float:
        with torch.no_grad():
            return float((model(unseen) * answers).sum(-1).mean())

    rows: Rows = []
    for name, plan in exported().items():
        alone = similarity(load_pretrained(Encoder(), RUN.exports / name))
        start = time.perf_counter()
        in_order = similarity(refit(copy.deepcopy(dense), plan, batches))
        spent = time.perf_counter() - start
        rows.append(
            {"case": name, "fitted alone": alone, "refitted in order": in_order, "seconds to refit": spent}
            | plan.ratios
        )
    return rows


def model_latency(device: str, threads: int) -> Rows:
    """Latency of whole models against predictions from stored evaluations and from layers timed in the same run."""
    stored = exported()
    x = sentences(BATCH, seed=3)
    dense = Encoder()
    models = {name: load_pretrained(Encoder(), RUN.exports / name) for name in stored}
    layers = {n: m for n, m in dense.named_modules() if isinstance(m, nn.Linear)}
    with torch.inference_mode():
        whole = measure(
            {"dense": lambda: dense(x), **{n: partial(m, x) for n, m in models.items()}},
            "dense", threads=threads, seconds=3.0,
        )  # fmt: skip
        dense_sum, here = _layers_alone(models, layers, threads)
    rest = whole["dense"].seconds - dense_sum
    rows: Rows = [
        {"case": "dense", "measured ms": 1e3 * whole["dense"].seconds, "sum of its layers ms": 1e3 * dense_sum}
    ]
    for name, plan in stored.items():
        from_table = rest + dense_sum * plan.ratios["latency"]
        measured = whole[name].seconds
        rows.append({
            "case": name, "measured ms": 1e3 * measured, "whole over dense": whole[name].ratio,
            "predicted from the table ms": 1e3 * from_table, "off": from_table / measured - 1,
            "predicted from layers timed here ms": 1e3 * (rest + here[name]),
            "off here": (rest + here[name]) / measured - 1,
        })  # fmt: skip
    return rows


def _layers_alone(
    models: dict[str, nn.Module], dense: dict[str, nn.Linear], threads: int
) -> tuple[float, dict[str, float]]:
    """Total seconds of the dense layers and of each model's layers; every shape and structure is timed once, alone."""
    generator = torch.Generator().manual_seed(0)
    groups: dict[tuple[int, int], dict[str, nn.Module]] = {}
    keys: dict[str, dict[str, tuple[tuple[int, int], str]]] = {name: {} for name in models}
    for name, linear in dense.items():
        kind = (linear.in_features, linear.out_features)
        groups.setdefault(kind, {}).setdefault("dense", linear)
        for model, module in models.items():
            found = module.get_submodule(name)
            key = f"{found.family} {found.spec} {found.kernel}" if isinstance(found, StructuredLinear) else "dense"
            groups[kind].setdefault(key, found)
            keys[model][name] = kind, key
    seconds = {}
    for kind, members in groups.items():
        x = F.layer_norm(torch.randn(BATCH * 128, kind[0], generator=generator), (kind[0],))
        timed = measure({k: partial(m, x) for k, m in members.items()}, "dense", threads=threads, seconds=0.3)
        seconds[kind] = {k: t.ratio * timed["dense"].seconds for k, t in timed.items()}
    total = sum(seconds[m.in_features, m.out_features]["dense"] for m in dense.values())
    return total, {model: sum(seconds[kind][key] for kind, key in names.values()) for model, names in keys.items()}
