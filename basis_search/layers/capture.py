"""Capture a model's dense layers while it runs: weights, input samples, moments, and the loss's sensitivities."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from basis_search.errors import BadInput, near_miss
from basis_search.layers.collection import Layers, matches
from basis_search.layers.dense_modules import Dense, dense_layers, tied_to_others
from basis_search.layers.layer import Layer
from basis_search.layers.row_sample import RowSample

NOISE = 0.1
"""Relative squared size of the noise added to a layer's output to measure the loss's sensitivity."""
NOISE_BATCHES = 4
SENSITIVITIES = ("noise", "gradient")


class _Recorder:
    """Forward and gradient hooks of one layer."""

    def __init__(self, linear: Dense, samples: int, seed: int, with_gradient: bool):
        self.view = linear.view
        self.rows = RowSample(samples, seed)
        self.moment = torch.zeros(linear.in_features, linear.in_features, dtype=torch.float64)
        self.gradient_moment = torch.zeros(linear.out_features, linear.out_features, dtype=torch.float64)
        self.gradient_rows = 0
        self.with_gradient = with_gradient
        self.calls = self.calls_of_this_forward = 0

    def start_forward(self) -> None:
        self.calls = max(self.calls, self.calls_of_this_forward)
        self.calls_of_this_forward = 0
        self.rows.start_batch()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> None:
        given: Tensor = args[0] if args else next(iter(kwargs.values()))
        self.calls_of_this_forward += 1
        rows = self.rows.add(self.view.rows(given.detach()))
        wide = rows.double().cpu()
        self.moment += wide.T @ wide
        if self.with_gradient and output.requires_grad:
            output.register_hook(self._gradient)  # type: ignore[no-untyped-call]

    def _gradient(self, gradient: Tensor) -> None:
        gradient = self.view.last(gradient.detach())
        rows = gradient.reshape(-1, gradient.shape[-1]).double().cpu()
        self.gradient_moment += rows.T @ rows
        self.gradient_rows += len(rows)


def capture(
    model: nn.Module,
    batches: Iterable[Any],
    layers: str | Sequence[str] = "re:.*",
    samples: int = 4096,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    *,
    exclude: str | Sequence[str] = (),
    sensitivity: str = "noise",
    seed: int = 0,
) -> Layers:
    """Runs the model on the batches and captures each matching dense layer, with samples of its inputs.

    Dense layers are nn.Linear, GPT-2's Conv1D and convolutions of kernel size 1. Names of one module, or of one weight
    and bias, are one layer, which is called several times. A quarter of each batch's examples (dimension 0) is held
    out to evaluate on; of batches with one example, every fourth is.

    Args:
        model: run in eval mode; unchanged afterwards.
        batches: each a tensor (model(batch)), a tuple or list (model(*batch)) or a dict (model(**batch)).
        layers: exact names or "re:<regular expression>" on the full name, one or several. A layer that shares its
            weight with an embedding is taken only under its exact name: the embedding would stay.
        samples: at most this many rows to fit on per layer, and a quarter as many to evaluate on.
        loss: (model, batch) -> scalar. With it, second moments of the output gradients are captured too, and each
            layer's sensitivity is measured. All batches are then held in memory.
        exclude: names or patterns of layers to leave out.
        sensitivity: "noise" adds noise of relative squared size 0.1 to a layer's output and divides the rise of the
            loss by 0.1: one more forward pass for each layer and batch. "gradient" computes it from the gradients'
            second moments, s = N/2 sum over rows of E|g|^2/out E|y|^2 (the diagonal of the empirical Fisher
            matrix; N examples a batch): no further pass, but it needs a loss that is not at its minimum.
        seed: of the sample and of the noise.

    Raises:
        BadInput: no layer matches, no batch was given, a value is NaN or infinite, or all gradients are zero.
    """
    if samples < 1:
        raise BadInput(f"samples is {samples}, but at least 1 row per layer is needed")
    if sensitivity not in SENSITIVITIES:
        raise BadInput(f"there is no sensitivity {sensitivity!r}{near_miss(sensitivity, SENSITIVITIES)}")
    groups = _groups(model, layers, exclude)
    if loss is not None:
        batches = list(batches)
    recorders = {
        names[0]: _Recorder(found[0], samples, seed + index, loss is not None)
        for index, (names, found) in enumerate(groups)
    }
    training = model.training
    model.eval()
    handles = [
        module.register_forward_hook(recorders[names[0]], with_kwargs=True)
        for names, found in groups
        for module in {id(d.module): d.module for d in found}.values()
    ]
    try:
        count = examples = 0
        for batch in batches:
            count += 1
            examples = max(examples, _examples(batch))
            for recorder in recorders.values():
                recorder.start_forward()
            if loss is None:
                with torch.no_grad():
                    forward(model, batch)
            else:
                with torch.enable_grad():
                    model.zero_grad(set_to_none=True)
                    value = loss(model, batch)
                    if not bool(torch.isfinite(value)):
                        raise BadInput(
                            f"the model's loss is NaN or infinite on batch {count}; repair the model or the data first"
                        )
                    value.backward()  # type: ignore[no-untyped-call]
        for recorder in recorders.values():
            recorder.start_forward()
    finally:
        for handle in handles:
            handle.remove()
        if loss is not None:
            model.zero_grad(set_to_none=True)
        model.train(training)
    if count == 0:
        raise BadInput("no batch was given; capture needs at least one batch of real inputs")
    never = [name for name, recorder in recorders.items() if recorder.rows.fit.rows is None]
    if never:
        raise BadInput(
            f"these layers never ran, or only on held-out examples: {', '.join(never)}; give more batches or exclude "
            "them by exclude=[...]"
        )
    captured = [_layer(names, found[0], recorders[names[0]]) for names, found in groups]
    if loss is None:
        return Layers(tuple(captured))
    if sensitivity == "gradient":
        sensitivities = {layer.name: _gradient_sensitivity(layer, examples) for layer in captured}
        if max(sensitivities.values()) == 0:
            raise BadInput(
                "the loss has no gradient at any layer's output, as at its minimum; use sensitivity='noise', or a loss "
                "against labels"
            )
    else:
        sensitivities = _noise_sensitivities(model, groups, list(batches)[:NOISE_BATCHES], loss, seed)
    floor = 1e-3 * max(max(sensitivities.values()), 1e-9)
    return Layers(tuple(replace(layer, sensitivity=max(sensitivities[layer.name], floor)) for layer in captured))


_Group = tuple[list[str], list[Dense]]


def _groups(model: nn.Module, layers: str | Sequence[str], exclude: str | Sequence[str]) -> list[_Group]:
    """Names and modules of each layer to capture, in the model's order; those that share weight and bias together."""
    others, groups = tied_to_others(model), dict[tuple[int, int], _Group]()
    exact = [layers] if isinstance(layers, str) else list(layers)
    for name, found in dense_layers(model):
        if not matches(name, layers) or matches(name, exclude):
            continue
        weight = found.module.weight
        if name not in exact and id(weight) in others:
            warnings.warn(
                f"the layer {name!r} shares its weight with {others[id(weight)]!r}, which would stay; it is left out "
                "(give its exact name to capture it all the same)",
                stacklevel=3,
            )
            continue
        names, modules = groups.setdefault((id(weight), id(found.bias)), ([], []))
        names.append(name)
        modules.append(found)
    if not groups:
        known = [n for n, _ in dense_layers(model)]
        raise BadInput(f"no nn.Linear matches {layers!r}; the model has: {', '.join(known) or 'none'}")
    return list(groups.values())


def _layer(names: Sequence[str], found: Dense, recorder: _Recorder) -> Layer:
    inputs, held_out = recorder.rows.tensors(names[0])
    seen = recorder.rows.fit.seen
    weight = found.weight.detach()
    return Layer(
        name=names[0],
        weight=weight.cpu().contiguous().clone(),
        bias=None if found.bias is None else found.bias.detach().cpu().clone(),
        inputs=inputs,
        held_out=held_out,
        batch=recorder.rows.call_rows,
        dtype=weight.dtype,
        moment=(recorder.moment / seen).float() if seen > len(inputs) else None,
        gradient_moment=(recorder.gradient_moment / recorder.gradient_rows).float() if recorder.gradient_rows else None,
        calls=recorder.calls,
        aliases=tuple(names[1:]),
    )


def forward(model: nn.Module, batch: Any) -> Any:
    """One forward pass; a tensor is the only argument, a tuple or list the arguments, a dict keyword arguments."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple | list):
        return model(*batch)
    return model(batch)


def _examples(batch: Any) -> int:
    """Dimension 0 of the first tensor."""
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else [batch]
    return next((len(t) for t in parts if isinstance(t, Tensor) and t.ndim), 1)


def _gradient_sensitivity(layer: Layer, examples: int) -> float:
    """Rise of the loss, to second order, per unit of relative squared error spread evenly over the outputs."""
    if layer.gradient_moment is None:
        return 0.0
    weight = layer.weight.double()
    signal = float(((weight @ layer.second_moment) * weight).sum())  # E |y|^2 without the bias
    gradient = float(layer.gradient_moment.double().trace()) / layer.out_features
    return 0.5 * examples * layer.batch * layer.calls * gradient * signal


@torch.no_grad()
def _noise_sensitivities(
    model: nn.Module,
    groups: Sequence[_Group],
    batches: Sequence[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    seed: int,
) -> dict[str, float]:
    """Rise of the mean loss per unit of relative squared noise on each layer's output."""
    training = model.training
    model.eval()
    try:
        clean = [float(loss(model, batch)) for batch in batches]
        result = {}
        for index, (names, found) in enumerate(groups):
            generator = torch.Generator().manual_seed(seed + index)

            def noisy(module: nn.Module, args: Any, output: Tensor, d: Dense = found[0], g: Any = generator) -> Tensor:
                rows = d.view.last(output)
                signal = rows if d.bias is None else rows - d.bias
                noise = torch.randn(rows.shape, generator=g).to(rows.device, rows.dtype)
                return d.view.restore(rows + noise * (NOISE * signal.square().mean()).sqrt())

            modules = {id(d.module): d.module for d in found}.values()
            handles = [module.register_forward_hook(noisy) for module in modules]
            try:
                rises = [float(loss(model, b)) - c for b, c in zip(batches, clean, strict=True)]
            finally:
                for handle in handles:
                    handle.remove()
            result[names[0]] = sum(rises) / len(rises) / NOISE
        return result
    finally:
        model.train(training)
