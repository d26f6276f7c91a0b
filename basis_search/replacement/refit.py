"""Refit a plan's layers in forward order, each to the inputs that the layers replaced before it produce.

With x a layer's inputs in the dense model and x' those in the model as replaced so far, its structure is fitted on x'
to W* = W + W (C - M) (M + r I)^-1 with M = E x' x'^T and C = E x x'^T, the dense layer that best corrects the error of
the earlier layers (as GPTQ does for rounding, arXiv 2504.02692); or to W itself. Moments are of all rows, about the
means if there is a bias, and the fit is in the layer's output metric where it has one. The model begins with every
layer fitted alone. A refitted layer stays only if the outputs of the whole model come closer to the dense model's on
held-out examples, so that a refit never ends farther away than it began.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from basis_search.errors import BadInput
from basis_search.layers.batches import forward
from basis_search.layers.dense_modules import Dense, dense
from basis_search.layers.layer import Layer
from basis_search.layers.output_metric import OutputMetric
from basis_search.planning.plan import Plan
from basis_search.replacement.export import apply_, replace_layers
from basis_search.replacement.paired_inputs import PairedInputs, paired_inputs
from basis_search.replacement.structured_linear import StructuredLinear, fit
from basis_search.replacement.whole_model_distance import Output, OutputDistance

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
"""r over the mean of the diagonal of M; limits W* in directions with little input. Held-out rows choose among them."""


def refit(
    model: nn.Module,
    plan: Plan,
    batches: Iterable[Any],
    *,
    samples: int = 4096,
    compensate: bool = True,
    seed: int = 0,
    progress: bool = False,
    output: Output | None = None,
) -> nn.Module:
    """Replaces the model's layers in place by the plan's choices, fitted one after the other in forward order.

    Args:
        model: the dense model that was captured; it runs in eval mode.
        plan: of `plan()`. Each layer begins as `apply_` makes it; where the plan does not have the layers that it was
            made for, fitted to the dense model's inputs, which takes as long again.
        batches: as for `capture`, held in memory; each input costs up to two forward passes over all of them, and each
            layer one over a quarter of the examples, which are held out.
        samples: at most this many rows for what moments do not suffice for.
        compensate: fit to W*, which also corrects the error of the earlier layers; else to W.
        seed: of the sample.
        progress: show a bar.
        output: (model, batch) -> the tensor whose distance from the dense model's decides; by default the first
            floating tensor that the model returns. With it, padding that "attention_mask" in dict batches marks is
            left out of moments and samples.

    Raises:
        BadInput: the model lacks a layer of the plan or never runs it, no batch was given, or only one example, or the
            output is no floating tensor.
    """
    batches = list(batches)
    if not batches:
        raise BadInput("no batch was given; a refit needs real inputs")
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in plan.choices:
        if name not in modules or dense(modules[name]) is None:
            raise BadInput(f"the model has no dense layer {name!r}; refit the model that was captured")
    training = model.training
    model.eval()
    original = copy.deepcopy(model)
    groups = _forward_order(model, plan.choices, batches[0])
    dense_layers = {name: found for name in plan.choices if (found := dense(original.get_submodule(name))) is not None}
    distance = OutputDistance(original, batches, output)
    bar = tqdm(total=len(plan.choices), desc="refit", unit="layer", disable=not progress)

    def fitted(compensate: bool) -> Iterator[tuple[tuple[str, ...], StructuredLinear]]:
        """Each layer's names and its structure on the inputs of the model as it is then, in forward order."""
        for group in groups:
            seen: dict[tuple[Any, ...], PairedInputs] = {}
            for name in group:
                known, found = plan.layers.get(name), dense_layers[name]
                names = (name, *(known.aliases if known is not None else ()))
                key = (names[1:], found.view)
                if key not in seen:
                    masked = output is not None
                    seen[key] = paired_inputs(original, model, names, batches, found.view, samples, seed, masked)
                layer = _layer(name, found, seen[key], None if known is None else known.output_metric, compensate)
                chosen = plan.choices[name]
                module = fit(layer, chosen.candidate.family, chosen.candidate.spec)
                module.prefer(chosen.kernel)
                yield names, module

    if _has_its_layers(plan):
        apply_(model, plan)
    else:
        replace_layers(model, dict(fitted(compensate=False)))
    least = distance(model)
    for names, module in fitted(compensate):
        before = {name: model.get_submodule(name) for name in names}
        replace_layers(model, {names: module})
        if (now := distance(model)) < least:
            least = now
        else:
            _put(model, before)
        bar.update()
    bar.close()
    return model.train(training)


def _has_its_layers(plan: Plan) -> bool:
    """Whether the plan holds the very layers that it was made for."""
    return all(
        name in plan.layers and plan.layers[name].content_hash == chosen.layer_hash
        for name, chosen in plan.choices.items()
    )


def _put(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    for name, module in modules.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, module)


def _forward_order(model: nn.Module, names: Mapping[str, Any], batch: Any) -> list[list[str]]:
    """Names in the order of their first call; those that see one tensor in succession together."""
    order: list[list[str]] = []
    known: set[str] = set()
    last: list[Tensor] = []  # keeps it alive, so that no other tensor takes its place

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            if name not in known:
                known.add(name)
                if last and last[0] is x:
                    order[-1].append(name)
                else:
                    order.append([name])
            last[:] = [x]

        return hook

    handles = [model.get_submodule(name).register_forward_hook(note(name), with_kwargs=True) for name in names]
    try:
        with torch.no_grad():
            forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    missing = [name for name in names if name not in known]
    if missing:
        raise BadInput(f"these layers never ran: {', '.join(missing)}; give batches that reach them")
    return order


def _layer(name: str, found: Dense, seen: PairedInputs, metric: OutputMetric | None, compensate: bool) -> Layer:
    """The layer to fit, on the inputs of the replaced model."""
    weight = found.weight.detach()
    layer = Layer(
        name=name,
        weight=weight,
        bias=None if found.bias is None else found.bias.detach(),
        inputs=seen.inputs,
        held_out=seen.held_out,
        batch=seen.call_rows,
        dtype=weight.dtype,
        device=weight.device,
        moment=(seen.moment / seen.rows).float() if seen.rows > len(seen.inputs) else None,
        output_metric=metric,
    ).on_device()
    if not compensate:
        return layer
    new_weight, new_bias = compensated(layer, seen)
    return replace(layer, weight=new_weight, bias=new_bias)


def compensated(layer: Layer, seen: PairedInputs) -> tuple[Tensor, Tensor | None]:
    """W* [out, in] and the bias that makes up for the means, by the ridge of least error on held-out rows."""
    device, w = layer.device, layer.weight.double()
    moment, cross = (m.to(device) / seen.rows for m in (seen.moment, seen.cross))
    mean, dense_mean = seen.mean.to(device), seen.dense_mean.to(device)
    if layer.bias is not None:
        moment, cross = moment - torch.outer(mean, mean), cross - torch.outer(dense_mean, mean)
    values, axes = torch.linalg.eigh(moment)
    values, change = values.clamp_min(0), w @ (cross - moment) @ axes
    unit = torch.where(values.mean() > 0, values.mean(), 1.0)
    x_new, x = (rows.to(device).double() for rows in (layer.held_out, seen.dense_held_out))
    wanted = x @ w.T
    errors, found = [], []
    for ridge in RIDGES:
        weight = w + (change / (values + ridge * unit)) @ axes.T
        shift = w @ dense_mean - weight @ mean if layer.bias is not None else torch.zeros_like(w[:, 0])
        missed = wanted - x_new @ weight.T - shift
        metric = layer.output_metric
        errors.append(metric.energy(missed) if metric is not None else missed.square().sum())
        found.append((weight, shift))
    weight, shift = found[int(torch.stack(errors).argmin())]
    bias = None if layer.bias is None else (layer.bias.double() + shift).to(layer.bias.dtype)
    return weight.to(layer.weight.dtype), bias
