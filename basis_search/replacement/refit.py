"""After the assignment: each layer fitted again to the inputs that the already replaced layers give it.

In forward order, with X the dense model's inputs and X' those of the model as replaced so far, a layer's structure is
fitted on X' to W* = W + (X W^T - X' W^T)^T X' (X'^T X' + r I)^-1, the dense layer that best undoes on X' what the
earlier layers did (as GPTAQ does for rounding, arXiv 2504.02692), or to W itself.
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
from basis_search.layers.capture import Rows, forward
from basis_search.layers.dense_modules import View, dense
from basis_search.layers.layer import HELD_OUT_FRACTION, Layer
from basis_search.planning.plan import Plan
from basis_search.replacement.export import replace_layers
from basis_search.replacement.structured_linear import fit

RIDGE = 1e-2
"""r over the mean diagonal of X'^T X': how far W* may follow inputs that were hardly seen."""


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
    """Replaces the model's layers in place by what the plan chose, one after the other in forward order.

    Args:
        model: dense, as it was captured; it runs in eval mode.
        plan: of `plan()`; its layers' samples are not needed.
        batches: as for `capture`, kept in memory; each layer costs a part of a forward pass over all of them, twice.
        samples: at most so many rows to fit on.
        compensate: fit to W*, so that a layer also undoes the error of the earlier ones; else to W.
        seed: of the sample.
        progress: show a bar.

    Raises:
        BadInput: the model lacks a layer of the plan or never runs it, or no batch was given.
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
        assert found is not None  # looked up above; only earlier names were replaced
        names = (name, *(plan.layers[name].aliases if name in plan.layers else ()))
        here = _inputs(model, names, batches, found.view, samples, seed)
        weight = found.weight.detach().cpu()
        layer = Layer(
            name=name,
            weight=weight,
            bias=None if found.bias is None else found.bias.detach().cpu(),
            inputs=here[0],
            held_out=here[1],
            batch=here[2],
            dtype=weight.dtype,
        )
        if compensate:
            before = _inputs(original, names, batches, found.view, samples, seed)
            layer = replace(layer, weight=_compensated(layer, before[0]))
        module = fit(layer, chosen.candidate.family, chosen.candidate.spec)
        module.prefer(chosen.kernel)
        replace_layers(model, {names: module})
    return model.train(training)


class _Reached(Exception):
    """The layer has run; the rest of the forward pass is of no interest."""


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
) -> tuple[Tensor, Tensor, int]:
    """Rows to fit on and to judge by, and rows of one call; the same rows for models that run alike."""
    generator = torch.Generator().manual_seed(seed)
    taken, held_out = Rows(samples, generator), Rows(max(1, int(samples * HELD_OUT_FRACTION)), generator)
    size = 0

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> None:
        nonlocal size
        rows = view.rows(args[0] if args else next(iter(kwargs.values())))
        rows = rows.reshape(-1, rows.shape[-1])
        size = max(size, len(rows))
        held = max(1, int(len(rows) * HELD_OUT_FRACTION))
        taken.add(rows[:-held] if len(rows) > 1 else rows)
        held_out.add(rows[-held:])
        if len(names) == 1:
            raise _Reached

    modules = {id(m): m for m in (model.get_submodule(name) for name in names)}.values()
    handles = [module.register_forward_hook(record, with_kwargs=True) for module in modules]
    try:
        with torch.no_grad():
            for batch in batches:
                try:
                    forward(model, batch)
                except _Reached:
                    continue
    finally:
        for handle in handles:
            handle.remove()
    assert taken.rows is not None  # the layer ran when the order was found
    assert held_out.rows is not None
    return taken.rows, held_out.rows, size


def _compensated(layer: Layer, before: Tensor) -> Tensor:
    """W* [out, in]."""
    x, w = layer.inputs.double(), layer.weight.double()
    gram = x.T @ x
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    change = torch.linalg.solve(gram, x.T @ ((before.double() - x) @ w.T))  # [in, out]
    refitted: Tensor = (w + change.T).to(layer.weight.dtype)
    return refitted
