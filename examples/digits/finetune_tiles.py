"""Replace the digits transformer's layers under a FLOP budget: fit, distil layer by layer, fine-tune the model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from model import DigitsTransformer, accuracy, digits
from safetensors.torch import load_file
from tiles import BLOCK_LAYERS, TILE, Rates, flops, optimise, replaced
from torch import Tensor, nn

import basis_search as bs
from basis_search.families import dense, lowrank, stl
from basis_search.families.protocol import relative_gap
from basis_search.families.stl.bases import bases
from basis_search.families.stl.fit import encode_weight
from basis_search.families.stl.reference import reference
from basis_search.schemes.numerical import approximation, ternary_catalogue

DISTIL_EPOCHS, TUNE_EPOCHS = 4, 4
DISTIL_RATES, TUNE_RATES = Rates(1.6e-3, 4e-4, 1e-3), Rates(4e-4, 1e-4, 3e-4)
"""Distillation allows high rates: each layer has a separate, nearby target and errors do not propagate between layers.
Fine-tuning changes all layers of a working model at once."""
TEMPERATURE = 2.0
SIDES = (TILE, TILE, TILE)
LOW_RANKS = (8, 24)
"""Ranks of the low-rank part of "low rank + stl"."""
SWEEPS = 4
KINDS = ("stl", "stl ternary", "low rank", "low rank + stl")
Fitted = dict[str, bs.StructuredLinear]
Add = Callable[[dict[str, Any], Callable[[], dict[str, Any]]], None]
"""Called with a row's key and a function that computes the rest of the row."""


def specs(kind: str, layer: bs.Layer, budget: float) -> list[Any]:
    """The largest structures of that kind within the budget, one per kind of bases and rank of the low-rank part."""
    most = budget * dense.cost(dense.Spec(), layer).flops
    if kind == "low rank":
        ranks = range(1, min(layer.in_features, layer.out_features))
        return [lowrank.Spec(max(r for r in ranks if lowrank.cost(lowrank.Spec(r), layer).flops <= most))]
    found = []
    for low_rank in LOW_RANKS if kind == "low rank + stl" else (0,):
        if kind != "stl ternary":
            found.append([stl.Spec(TILE, r, sweeps=SWEEPS, waist=low_rank) for r in approximation.known_ranks(*SIDES)])
        if kind != "stl":
            found += [
                [stl.Spec(TILE, r, name, waist=low_rank) for r in ternary_catalogue.known_ranks(*SIDES)]
                for name in ("ternary", "ternary-turned")
            ]
    fitting = ([spec for spec in specs if stl.cost(spec, layer).flops <= most] for specs in found)
    return [specs[-1] for specs in fitting if specs]


def fit(kind: str, layer: bs.Layer, budget: float) -> bs.StructuredLinear:
    """The best of its kind within the budget, by the error on the rows it is fitted to."""
    family = "lowrank" if kind == "low rank" else "stl"
    made = [bs.fit(layer, family, spec) for spec in specs(kind, layer, budget)]
    target = F.linear(layer.inputs, layer.weight, layer.bias)
    with torch.no_grad():
        return min(made, key=lambda module: float((module(layer.inputs) - target).square().sum()))


def distil(model: nn.Module, teacher: nn.Module, images: Tensor, labels: Tensor, seed: int) -> None:
    """Train each layer to reproduce the dense layer's outputs on the inputs of the dense layer."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = inputs[0].detach(), output.detach()

        return hook

    hooks = [teacher.get_submodule(name).register_forward_hook(note(name)) for name in BLOCK_LAYERS]

    def loss(x: Tensor, _: Tensor) -> Tensor:
        with torch.no_grad():
            teacher(x)
        # Relative errors, so that layers with large outputs do not dominate.
        parts = []
        for name, (inputs, output) in seen.items():
            spread = (output - output.mean(dim=(0, 1))).square().sum()
            parts.append((model.get_submodule(name)(inputs) - output).square().sum() / spread)
        return torch.stack(parts).mean()

    try:
        optimise(model, loss, images, labels, epochs=DISTIL_EPOCHS, rates=DISTIL_RATES, seed=seed, decay=0.0)
    finally:
        for hook in hooks:
            hook.remove()


def tune(model: nn.Module, teacher: nn.Module, images: Tensor, labels: Tensor, seed: int) -> None:
    """Train the whole model on the dense model's predictions and the labels (Hinton et al. 2015)."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            target = teacher(x)
        logits = model(x)
        softened = F.softmax(target / TEMPERATURE, dim=1)
        answers = F.kl_div(F.log_softmax(logits / TEMPERATURE, dim=1), softened, reduction="batchmean")
        return TEMPERATURE**2 * answers + 0.5 * F.cross_entropy(logits, y, label_smoothing=0.05)

    optimise(model, loss, images, labels, epochs=TUNE_EPOCHS, rates=TUNE_RATES, seed=seed, decay=0.01)


def compare(add: Add, folder: Path, budgets: Sequence[float]) -> None:
    """Add one row per layer, budget and kind: ||f(x) - W x||^2 / ||W x||^2 on held-out inputs, without training."""
    captured = bs.Layers.load(folder / "layers")
    for name in BLOCK_LAYERS:
        layer = captured[name]
        for budget in budgets:
            for kind in ("stl, not fitted", *KINDS, "2:4 pruning"):
                if kind != "2:4 pruning" or budget >= 0.5:
                    key = {"recipe": "layers", "kind": kind, "budget": budget, "layer": name}
                    add(key, lambda args=(kind, layer, budget): one_shot(*args))  # type: ignore[misc]


def one_shot(kind: str, layer: bs.Layer, budget: float) -> dict[str, Any]:
    """Error and FLOPs of the best of its kind within the budget; "not fitted" encodes the weight by the basis."""
    x, target = layer.held_out, F.linear(layer.held_out, layer.weight)
    if kind == "2:4 pruning":
        fours = layer.weight.abs().view(layer.out_features, -1, 4)
        keep = torch.zeros_like(fours).scatter_(2, fours.topk(2, dim=2).indices, 1.0).view_as(layer.weight)
        return {"error": relative_gap(F.linear(x, layer.weight * keep), target) ** 2, "flops": 0.5}
    if kind == "stl, not fitted":
        found = [spec for name in ("stl", "stl ternary") for spec in specs(name, layer, budget)]
        spec = min(found, key=lambda spec: bases(spec).residual)
        kept = bases(spec)
        params = {"encode": kept.encode.float(), "decode": kept.decode.float()}
        params["weight"] = encode_weight(kept.encode_weight.float(), layer.weight, TILE)
        params["out_features"] = torch.tensor(layer.out_features)
        y = reference(spec, params, x)
    else:
        module = fit(kind, layer, budget)
        spec = module.spec
        with torch.no_grad():
            y = module(x) if layer.bias is None else module(x) - layer.bias
    cost = lowrank.cost if kind == "low rank" else stl.cost
    share = cost(spec, layer).flops / dense.cost(dense.Spec(), layer).flops
    return {"error": relative_gap(y, target) ** 2, "flops": share, "spec": str(spec)}


def finetune(add: Add, folder: Path, budgets: Sequence[float], seeds: int) -> None:
    """Add one row per budget, kind and seed: accuracy fitted, distilled, and tuned with and without distillation."""
    images, labels, test_images, test_labels = digits()
    teacher = DigitsTransformer()
    teacher.load_state_dict(load_file(folder / "model.safetensors"))
    teacher.eval()
    captured = bs.Layers.load(folder / "layers")
    fits: dict[tuple[str, float], Fitted] = {}

    def fitted(kind: str, budget: float) -> Fitted:
        if (kind, budget) not in fits:
            fits[kind, budget] = {name: fit(kind, captured[name], budget) for name in BLOCK_LAYERS}
        return fits[kind, budget]

    def run(kind: str, budget: float, seed: int) -> dict[str, Any]:
        start = fitted(kind, budget)
        model = replaced(teacher, lambda name, _: copy.deepcopy(start[name]), BLOCK_LAYERS)
        straight = copy.deepcopy(model)
        row: dict[str, Any] = {"flops": flops(model), "parameters": sum(p.numel() for p in model.parameters())}
        row["ranks"] = sorted({str(module.spec) for module in start.values()})
        row["fitted"] = accuracy(model, test_images, test_labels)
        distil(model, teacher, images, labels, seed)
        row["distilled"] = accuracy(model, test_images, test_labels)
        tune(model, teacher, images, labels, seed)
        row["tuned"] = accuracy(model, test_images, test_labels)
        tune(straight, teacher, images, labels, seed)
        row["tuned only"] = accuracy(straight, test_images, test_labels)
        return row

    add({"recipe": "dense"}, lambda: {"accuracy": accuracy(teacher, test_images, test_labels), "flops": 1.0})
    for seed in range(seeds):
        for budget in budgets:
            for kind in KINDS:
                key = {"recipe": "finetune", "kind": kind, "budget": budget, "seed": seed}
                add(key, lambda args=(kind, budget, seed): run(*args))  # type: ignore[misc]
