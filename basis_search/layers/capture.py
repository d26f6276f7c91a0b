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
from basis_search.layers.dense_modules import Dense, Group, dense_layers, tied_to_others
from basis_search.layers.device import DTYPES
from basis_search.layers.layer import Layer
from basis_search.layers.row_sample import RowSample
from basis_search.layers.second_moment import MULTIPLIED, SharedMoments
from basis_search.layers.sensitivity import NOISE_BATCHES, gradient_sensitivity, noise_sensitivities

SENSITIVITIES = ("noise", "gradient")


class _Recorder:
    """Forward and gradient hooks of one layer."""

    def __init__(
        self, name: str, linear: Dense, rows: RowSample, inputs: SharedMoments, gradients: SharedMoments | None
    ):
        self.name, self.view, self.rows = name, linear.view, rows
        self.inputs, self.gradients = inputs, gradients
        self.gradient_rows = 0
        self.calls = self.calls_of_this_forward = 0

    def start_forward(self) -> None:
        self.calls = max(self.calls, self.calls_of_this_forward)
        self.calls_of_this_forward = 0
        self.rows.start_batch()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Tensor:
        given: Tensor = args[0] if args else next(iter(kwargs.values()))
        self.calls_of_this_forward += 1
        with torch.no_grad():
            self.inputs.add(self.name, given, self.view, self.rows.add(self.view.rows(given.detach())))
        if self.gradients is not None and torch.is_grad_enabled():
            if not output.requires_grad:  # the parameters do not: the graph begins here
                output = output + torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
            output.register_hook(self._gradient)  # type: ignore[no-untyped-call]
        return output

    def _gradient(self, gradient: Tensor) -> None:
        rows = self.view.last(gradient.detach())
        rows = rows.reshape(-1, rows.shape[-1])
        self.gradient_rows += len(rows)
        assert self.gradients is not None
        self.gradients.add(self.name, gradient, self.view, rows)


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

    Each layer keeps the device and dtype it runs on and in; its tensors come back on the CPU. Of the inputs only
    sampled rows are copied there. Second moments are summed on the layer's device: float32 products of at most 4,096
    rows, float64 totals (float64 products where the model is float64), of the upper triangle. Layers that see one
    tensor in succession (query, key and value) share one sum and its time.

    Memory for a layer 4096 -> 11008, in float32: on the layer's device 75 MB for the moment of the inputs and at most
    67 MB of rows that wait to be multiplied; with a loss 530 MB and 90 MB more for that of the output's gradients; half
    of the waiting rows in 16 bits. On the CPU a sample of 84 MB, the weight, and moments of 67 MB and 485 MB. The sums
    of all layers are kept until the end, shared ones once: 24 GB for the inputs of a decoder with 32 blocks of 4096 and
    11008 (7 billion parameters), and 46 GB more for its gradients; capture the layers in parts where that is too much.
    A layer that has seen no more rows than its sample holds needs no sum.

    Args:
        model: run in eval mode; unchanged afterwards. Its layers may be on several devices.
        batches: each a tensor (model(batch)), a tuple or list (model(*batch)) or a dict (model(**batch)).
        layers: exact names or "re:<regular expression>" on the full name, one or several. A layer that shares its
            weight with an embedding is taken only under its exact name: the embedding would stay.
        samples: at most this many rows to fit on per layer, and a quarter as many to evaluate on.
        loss: (model, batch) -> scalar. With it, second moments of the output gradients are captured too, and each
            layer's sensitivity is measured. The parameters themselves get no gradients. The first 4 batches are held
            in memory.
        exclude: names or patterns of layers to leave out.
        sensitivity: "noise" adds noise of relative squared size 0.1 to a layer's output and divides the rise of the
            loss by 0.1: one more forward pass for each layer and each of the first 4 batches, in which the dense
            layers before it are not computed again. "gradient" computes it from the gradients' second moments,
            s = N/2 sum over rows of E|g|^2/out E|y|^2 (the diagonal of the empirical Fisher matrix; N examples a
            batch): no further pass, but it needs a loss that is not at its minimum.
        seed: of the sample and of the noise, which is drawn on the layer's device.

    Raises:
        BadInput: no layer matches, no batch was given, a value is NaN or infinite, all gradients are zero, or a
            weight is on the meta device (as those of offloaded layers are) or quantised.
    """
    if samples < 1:
        raise BadInput(f"samples is {samples}, but at least 1 row per layer is needed")
    if sensitivity not in SENSITIVITIES:
        raise BadInput(f"there is no sensitivity {sensitivity!r}{near_miss(sensitivity, SENSITIVITIES)}")
    groups = _groups(model, layers, exclude)
    inputs, gradients = SharedMoments(min(samples, MULTIPLIED)), None if loss is None else SharedMoments()
    recorders = [
        _Recorder(names[0], found[0], RowSample(samples, seed + index), inputs, gradients)
        for index, (names, found) in enumerate(groups)
    ]
    first, examples = _run(model, batches, groups, recorders, loss)
    never = [recorder.name for recorder in recorders if recorder.rows.fit.seen == 0]
    if never:
        raise BadInput(
            f"these layers never ran, or only on held-out examples: {', '.join(never)}; give more batches or exclude "
            "them by exclude=[...]"
        )
    if loss is not None and not any(recorder.gradient_rows for recorder in recorders):
        raise BadInput(
            "the loss has no gradient at any captured layer's output: it does not depend on one, or is computed under "
            "torch.no_grad() or from numbers; return a scalar tensor computed from the model's output"
        )
    captured = []
    for names, found in groups:
        captured.append(_layer(names, found[0], recorders.pop(0)))  # each frees what it was made from
    if loss is None:
        return Layers(tuple(captured))
    if sensitivity == "gradient":
        sensitivities = {layer.name: gradient_sensitivity(layer, examples) for layer in captured}
        if max(sensitivities.values()) == 0:
            raise BadInput(
                "the loss has no gradient at any layer's output, as at its minimum; use sensitivity='noise', or a loss "
                "against labels"
            )
    else:
        sensitivities = noise_sensitivities(model, groups, first, loss, seed)
    floor = 1e-3 * max(max(sensitivities.values()), 1e-9)
    return Layers(tuple(replace(layer, sensitivity=max(sensitivities[layer.name], floor)) for layer in captured))


def _run(
    model: nn.Module,
    batches: Iterable[Any],
    groups: Sequence[Group],
    recorders: Sequence[_Recorder],
    loss: Callable[[nn.Module, Any], Tensor] | None,
) -> tuple[list[Any], int]:
    """All passes, recorded; the first `NOISE_BATCHES` batches, and the examples of the largest."""
    training, trained = model.training, [p for p in model.parameters() if loss is not None and p.requires_grad]
    model.eval()
    for parameter in trained:  # only gradients of outputs are needed
        parameter.requires_grad_(False)
    handles = [
        module.register_forward_hook(recorder, with_kwargs=True)
        for recorder, (_, found) in zip(recorders, groups, strict=True)
        for module in {id(d.module): d.module for d in found}.values()
    ]
    first: list[Any] = []
    try:
        count = examples = 0
        for batch in batches:
            count += 1
            examples = max(examples, _examples(batch))
            if len(first) < NOISE_BATCHES:
                first.append(batch)
            for recorder in recorders:
                recorder.start_forward()
            if loss is None:
                with torch.no_grad():
                    forward(model, batch)
            else:
                with torch.enable_grad():
                    value = loss(model, batch)
                    if not bool(torch.isfinite(value)):
                        raise BadInput(
                            f"the model's loss is NaN or infinite on batch {count}; repair the model or the data first"
                        )
                    if value.requires_grad:
                        value.backward()  # type: ignore[no-untyped-call]
            for shared in (recorders[0].inputs, recorders[0].gradients):
                if shared is not None:
                    shared.flush()
        for recorder in recorders:
            recorder.start_forward()
    finally:
        for handle in handles:
            handle.remove()
        for parameter in trained:
            parameter.requires_grad_(True)
        model.train(training)
    if count == 0:
        raise BadInput("no batch was given; capture needs at least one batch of real inputs")
    return first, examples


def _groups(model: nn.Module, layers: str | Sequence[str], exclude: str | Sequence[str]) -> list[Group]:
    """Names and modules of each layer to capture, in the model's order; those that share weight and bias together."""
    others, groups = tied_to_others(model), dict[tuple[int, int], Group]()
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
        _check_weight(name, found)
        names, modules = groups.setdefault((id(weight), id(found.bias)), ([], []))
        names.append(name)
        modules.append(found)
    if not groups:
        known = [n for n, _ in dense_layers(model)]
        raise BadInput(f"no nn.Linear matches {layers!r}; the model has: {', '.join(known) or 'none'}")
    return list(groups.values())


def _check_weight(name: str, found: Dense) -> None:
    """Refuses a weight without values, on a device without kernels, or of codes."""
    weight = found.weight
    if weight.is_meta and hasattr(found.module, "_hf_hook"):
        raise BadInput(
            f"the layer {name!r} is offloaded: between its calls its weight lies on the meta device, without values; "
            "load the model without offloading, or leave the layer out by exclude=[...]"
        )
    if weight.is_meta:
        raise BadInput(
            f"the layer {name!r} is on the meta device, which holds no values; load the model's weights onto a CPU or "
            "a GPU first"
        )
    if weight.device.type not in ("cpu", "cuda"):
        raise BadInput(
            f"the layer {name!r} is on {str(weight.device)!r}, but layers run on 'cpu' and 'cuda' devices; move the "
            "model first: model.cpu()"
        )
    if weight.dtype not in DTYPES:
        raise BadInput(
            f"the weight of the layer {name!r} is {weight.dtype}, but a floating dtype of at least 16 bits is needed; "
            "load the model unquantised"
        )


def _layer(names: Sequence[str], found: Dense, recorder: _Recorder) -> Layer:
    inputs, held_out = recorder.rows.tensors(names[0])
    seen, gradients = recorder.rows.fit.seen, recorder.gradient_rows
    weight = found.weight.detach()
    return Layer(
        name=names[0],
        weight=weight.to("cpu", copy=True).contiguous(),
        bias=None if found.bias is None else found.bias.detach().to("cpu", copy=True),
        inputs=inputs,
        held_out=held_out,
        batch=recorder.rows.call_rows,
        dtype=weight.dtype,
        device=weight.device,
        moment=recorder.inputs.mean(names[0], seen) if seen > len(inputs) else None,
        gradient_moment=recorder.gradients.mean(names[0], gradients) if recorder.gradients and gradients else None,
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
