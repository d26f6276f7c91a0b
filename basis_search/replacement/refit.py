"""Refit a plan's layers in forward order, each to the inputs that the layers replaced before it produce.

With X a layer's inputs in the dense model and X' those in the model as replaced so far, its structure is fitted on X'
to W* = W + (X W^T - X' W^T)^T X' (X'^T X' + r I)^-1, the dense layer that best corrects the error of the earlier layers
(as GPTAQ does for rounding, arXiv 2504.02692), or to W itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from basis_search.errors import BadInput
from basis_search.layers.batches import forward
from basis_search.layers.dense_modules import View, dense
from basis_search.layers.layer import Layer
from basis_search.layers.row_sample import RowSample
from basis_search.planning.plan import Plan
from basis_search.replacement.export import replace_layers
from basis_search.replacement.structured_linear import fit

RIDGE = 1e-2
"""r over the mean of the diagonal of X'^T X'; limits W* in directions with little input."""


def refit(
    model: nn.Module,
    plan: Plan,
    batches: Iterable[Any],
    *,
    samples: int = 4096,
    compensate: bool = True,
    seed: int = 0,
    progress: bool = False,
) -> nn.Module:
    """Replaces the model's layers in place by the plan's choices, fitted one after the other in forward order.

    Args:
        model: the dense model that was captured; it runs in eval mode.
        plan: of `plan()`; the samples of its layers are not used.
        batches: as for `capture`, held in memory; each layer costs up to two forward passes over all of them.
        samples: at most this many rows to fit on.
        compensate: fit to W*, which also corrects the error of the earlier layers; else to W.
        seed: of the sample.
        progress: show a bar.

    Raises:
        BadInput: the model lacks a layer of the plan or never runs it, no batch was given, or only one example.
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
    order = _forward_order(model, plan.choices, batches[0])
    for name in tqdm(order, desc="refit", unit="layer", disable=not progress):
        chosen = plan.choices[name]
        found = dense(model.get_submodule(name))
        assert found is not None  # checked above; only other layers were replaced since
        names = (name, *(plan.layers[name].aliases if name in plan.layers else ()))
        seen = _inputs(model, names, batches, found.view, samples, seed)
        inputs, held_out = seen.tensors(name)
        weight = found.weight.detach()
        layer = Layer(
            name=name,
            weight=weight,
            bias=None if found.bias is None else found.bias.detach(),
            inputs=inputs,
            held_out=held_out,
            batch=seen.call_rows,
            dtype=weight.dtype,
            device=weight.device,
        ).on_device()
        if compensate:
            before, _ = _inputs(original, names, batches, found.view, samples, seed).tensors(name)
            layer = replace(layer, weight=_compensated(layer, before.to(layer.device)))
        module = fit(layer, chosen.candidate.family, chosen.candidate.spec)
        module.prefer(chosen.kernel)
        replace_layers(model, {names: module})
    return model.train(training)


class _Reached(Exception):
    """Ends a forward pass at the layer whose inputs are sampled."""


def _forward_order(model: nn.Module, names: Mapping[str, Any], batch: Any) -> list[str]:
    """Names in the order of their first call."""
    order: dict[str, None] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda module, args, output: order.setdefault(name)

    handles = [model.get_submodule(name).register_forward_hook(note(name)) for name in names]
    try:
        with torch.no_grad():
            forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    missing = [name for name in names if name not in order]
    if missing:
        raise BadInput(f"these layers never ran: {', '.join(missing)}; give batches that reach them")
    return list(order)


def _inputs(
    model: nn.Module, names: Sequence[str], batches: Sequence[Any], view: View, samples: int, seed: int
) -> RowSample:
    """Samples of the layer's inputs; for two models of the same calls, the same rows in the same order."""
    seen = RowSample(samples, seed)

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> None:
        seen.add(view.rows(args[0] if args else next(iter(kwargs.values()))))
        if len(names) == 1:
            raise _Reached

    modules = {id(m): m for m in (model.get_submodule(name) for name in names)}.values()
    handles = [module.register_forward_hook(record, with_kwargs=True) for module in modules]
    try:
        with torch.no_grad():
            for batch in batches:
                seen.start_batch()
                try:
                    forward(model, batch)
                except _Reached:
                    continue
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _compensated(layer: Layer, before: Tensor) -> Tensor:
    """W* [out, in]."""
    x, w = layer.inputs.double(), layer.weight.double()
    gram = x.T @ x
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    change = torch.linalg.solve(gram, x.T @ ((before.double() - x) @ w.T))  # [in, out]
    refitted: Tensor = (w + change.T).to(layer.weight.dtype)
    return refitted
