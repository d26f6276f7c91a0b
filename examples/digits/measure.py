"""Measure a run's plans on the digits transformer: python examples/digits/measure.py RUN --model DIR

Writes test accuracy before and after a short fine-tune, FLOPs, latency and parameters of the whole model per plan to
RUN/summary.json, the fine-tuned models to RUN/export/<plan>-tuned, and the report.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from model import DigitsTransformer, accuracy, batches, digits, predict
from safetensors.torch import load_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import basis_search as bs
from basis_search import report
from basis_search.evaluation.evaluate import counted
from basis_search.evaluation.timing import clock_for, fingerprint, measure
from basis_search.families import FAMILIES
from basis_search.files import write_json
from basis_search.run.finish import read_plans
from basis_search.workers.evaluation_log import Record
from basis_search.workers.run_folder import RunFolder

BATCH, EPOCHS, LEARNING_RATE, TEMPERATURE = 64, 4, 2e-4, 2.0
VALIDATION = 257
"""Training images reserved for selection; test images are never used for it."""
FLOP_BUDGETS = (0.75, 0.5, 0.33, 0.25)


def finetune(
    student: nn.Module,
    teacher: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    epochs: int = EPOCHS,
    rate: float = LEARNING_RATE,
) -> float:
    """Train the student to reproduce the dense model's predictions (knowledge distillation, Hinton et al. 2015).

    Restores the state, of those before the first and after each epoch, that is closest to the dense model on the
    validation images, and returns that distance.
    """
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=rate)
    seen, unseen = images[:-VALIDATION], images[-VALIDATION:]
    steps = epochs * -(-len(seen) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    goal = predict(teacher, unseen)
    best, state = float(distance(predict(student, unseen), goal)), copy.deepcopy(student.state_dict())
    for _ in range(epochs):
        student.train()
        for x, _ in batches(seen, labels[:-VALIDATION], BATCH, generator):
            with torch.no_grad():
                target = teacher(x)
            optimizer.zero_grad(set_to_none=True)
            distance(student(x), target).backward()
            optimizer.step()
            schedule.step()
        now = float(distance(predict(student, unseen), goal))
        if now < best:
            best, state = now, copy.deepcopy(student.state_dict())
    student.load_state_dict(state)
    student.eval()
    return best


def distance(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """KL divergence of softened predictions."""
    softened = F.softmax(target / TEMPERATURE, dim=1)
    return TEMPERATURE**2 * F.kl_div(F.log_softmax(logits / TEMPERATURE, dim=1), softened, reduction="batchmean")


def restricted(record: Record, layers: bs.Layers, families: tuple[str, ...]) -> dict[str, bs.ParetoFront]:
    """The fronts of these families' evaluations alone."""
    return {
        layer.name: bs.ParetoFront.of(
            [e for e in record.of(layer.content_hash) if e.candidate.family in families], layer
        )
        for layer in layers
    }


@dataclasses.dataclass
class Point:
    """A model to measure: of several plans for its budget, the best on validation images after fine-tuning."""

    name: str
    kind: str
    plans: list[bs.Plan]


def wanted(run: Path, layers: bs.Layers) -> list[Point]:
    """The run's plans, and plans of low-rank layers alone and of int8 alone."""
    record = Record(RunFolder(run).evaluations_file)
    # Hashing has no gradient: layers before a pq layer learn nothing through it. So each FLOP budget is also tried
    # without pq, and with low rank alone.
    smooth = restricted(record, layers, tuple(name for name in FAMILIES if name != "pq"))
    low = restricted(record, layers, ("dense", "lowrank"))
    points = []
    for plan in read_plans(run, layers):
        others = [*affordable(smooth, plan.budget), *affordable(low, plan.budget)] if "flops" in plan.budget else []
        points.append(Point(plan.name, "plan", [plan, *others]))
    for budget in FLOP_BUDGETS:
        plans = affordable(low, {"flops": budget, "latency": math.inf})  # the baseline at any latency
        points += [Point(f"lowrank-{budget:.2f}", "lowrank", plans)] if plans else []
    int8 = restricted(record, layers, ("int8",))
    if all(front.evaluations for front in int8.values()):
        # int8 saves time, not operations: quantising the inputs adds to the dense layer's FLOPs.
        points.append(Point("int8", "int8", [bs.plan(int8, {"flops": 2.0, "latency": math.inf})]))
    return points


def affordable(fronts: dict[str, bs.ParetoFront], budget: Mapping[str, float]) -> list[bs.Plan]:
    """The plan for that budget, or an empty list if the fronts do not reach it."""
    try:
        return [bs.plan(fronts, budget)]
    except bs.BadInput as reason:
        print(reason)
        return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", type=Path, required=True, help="directory written by train.py")
    options = parser.parse_args()
    run: Path = options.run.resolve()
    torch.manual_seed(0)
    images, labels, test_images, test_labels = digits()
    dense = DigitsTransformer()
    dense.load_state_dict(load_file(options.model / "model.safetensors"))
    dense.eval()
    config = RunFolder(run).config()
    layers = bs.Layers.load(options.model / "layers").to(config.get("device"), config.get("dtype"))
    device = next(iter(layers)).device

    batch = test_images[:BATCH]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        dense(batch)
    names = {layer.name for layer in layers}
    linear = sum(2 * layer.batch * layer.in_features * layer.out_features for layer in layers)
    other_flops = counter.get_total_flops() - linear  # attention's two products
    other_parameters = sum(p.numel() for n, p in dense.named_parameters() if n.rpartition(".")[0] not in names)

    dense.to(device)
    images, labels, test_images, test_labels = (part.to(device) for part in (images, labels, test_images, test_labels))
    batch = test_images[:BATCH]
    points, models = [], {"dense": dense}
    known: dict[tuple[bs.Candidate, ...], tuple[float, bs.Plan, nn.Module, nn.Module]] = {}
    for point in tqdm(wanted(run, layers), desc="measure", unit="model"):
        tried = []
        for plan in point.plans:
            key = tuple(e.candidate for e in plan.choices.values())
            if key not in known:
                before = bs.apply_(copy.deepcopy(dense), plan)
                tuned = copy.deepcopy(before)
                known[key] = finetune(tuned, dense, images, labels), plan, before, tuned
            tried.append(known[key])
        _, plan, before, tuned = min(tried, key=lambda t: t[0])
        if point.kind == "plan":
            bs.save_pretrained(tuned, RunFolder(run).exports / f"{point.name}-tuned")
        models[point.name] = tuned
        points.append(
            {
                "name": point.name,
                "kind": point.kind,
                "budget": {q: limit for q, limit in point.plans[0].budget.items() if limit < math.inf},
                "families": sorted({e.candidate.family for e in plan.choices.values()}),
                "metric": accuracy(before, test_images, test_labels),
                "metric_tuned": accuracy(tuned, test_images, test_labels),
                "flops": plan.totals["flops"] + other_flops,
                "parameters": plan.totals["parameters"] + other_parameters,
            }
        )
    with torch.inference_mode():
        calls = {n: (lambda m=m: m(batch)) for n, m in models.items()}
        found = measure(calls, "dense", device=device, threads=1, seconds=0.3)
    timings = {name: counted(timing, clock_for(device, "auto")) for name, timing in found.items()}
    dense_flops = counter.get_total_flops()
    for entry in points:
        timing = timings[entry["name"]]
        entry |= {"latency": timing.seconds, "latency_ratio": timing.ratio, "latency_spread": timing.ratio_spread}
        entry["flops_ratio"] = entry["flops"] / dense_flops
    summary = {
        "schema_version": 1,
        "model": "digits transformer",
        "metric": "test accuracy",
        "dense": {
            "metric": accuracy(dense, test_images, test_labels),
            "flops": dense_flops,
            "latency": timings["dense"].seconds,
            "parameters": sum(p.numel() for p in dense.parameters()),
        },
        "points": points,
        "timing": {"threads": 1, "batch": BATCH, "device": dataclasses.asdict(fingerprint(device, 1))},
    }
    write_json(RunFolder(run).summary_file, summary)
    report.write(run)
    show(summary)
    tuned = [p["name"] for p in points if p["kind"] == "plan"]
    if tuned:
        name = "flops-0.50" if "flops-0.50" in tuned else tuned[0]
        reload_in_new_process(RunFolder(run).exports / f"{name}-tuned", predict(models[name], test_images))


def show(summary: dict) -> None:  # type: ignore[type-arg]
    """Print the table at the end of the demo."""
    dense = summary["dense"]
    print(f"\n{'':16} {'accuracy':>9} {'tuned':>7} {'FLOPs':>6} {'latency':>8} {'parameters':>11}")
    print(f"{'dense':16} {dense['metric']:9.4f} {'':7} {1:6.2f} {1:8.2f} {dense['parameters']:11}")
    for p in summary["points"]:
        print(
            f"{p['name']:16} {p['metric']:9.4f} {p['metric_tuned']:7.4f} {p['flops_ratio']:6.2f} "
            f"{p['latency_ratio']:8.2f} {int(p['parameters']):11}"
        )
    timing = summary["timing"]
    where = f"{timing['device']['name']}, batch {timing['batch']}, {timing['threads']} thread"
    print(f"FLOPs and latency of the whole model over dense; {where}\n")


def reload_in_new_process(directory: Path, expected: torch.Tensor) -> None:
    """Exit with an error unless a new process predicts the same from the exported files alone, on the CPU."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "logits.safetensors"
        subprocess.run(
            [sys.executable, str(Path(__file__).with_name("reload.py")), str(directory), str(out)], check=True
        )
        found = load_file(out)["logits"]
    difference = float((found - expected.cpu()).abs().max())
    limit = 1e-4 if expected.device.type == "cpu" else 1e-2  # kernels of a GPU add in another order
    changed = expected.device.type == "cpu" and not torch.equal(found.argmax(1), expected.argmax(1))
    if changed or difference > limit:
        raise SystemExit(f"{directory} predicts differently after a reload: logits differ by {difference:.2e}")
    print(f"reloaded {directory} in a new process: logits within {difference:.1e}")


if __name__ == "__main__":
    main()
