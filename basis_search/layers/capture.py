"""Capture a model's dense layers while it runs: weights, input samples, moments, and the loss's sensitivities."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from basis_search.errors import BadInput, near_miss
from basis_search.layers.batches import Mask
from basis_search.layers.capture_passes import Passes
from basis_search.layers.collection import Layers, matches
from basis_search.layers.dense_modules import Dense, Group, dense_layers, tied_to_others
from basis_search.layers.device import DTYPES
from basis_search.layers.layer import Layer
from basis_search.layers.probes import Output, Probes
from basis_search.layers.recorder import Pass, Recorder
from basis_search.layers.row_sample import RowSample
from basis_search.layers.second_moment import MULTIPLIED, SharedMoments
from basis_search.layers.sensitivity import gradient_sensitivity, noise_sensitivities

SENSITIVITIES = ("noise", "gradient")


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
    output: Output = None,
    likelihood: str | None = None,
    probes: int = 1,
    mask: Mask = None,
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
    With an output, sums for the metric are those of a loss up to 8,192 outputs, and a sketch beyond: 42 MB and 32 MB of
    waiting rows for 11008, 490 MB for a head of 128,256.

    With an output each batch takes a forward pass and `probes` backward passes, and every layer gets an `OutputMetric`:
    G, the mean over examples of the sum over rows of g g^T, g the gradient at the layer's output (K-FAC's output
    factor; Martens and Grosse 2015). From few examples G has a low rank; fits add a ridge. The number of examples is
    dimension 0 of a batch's first tensor.

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
            batch): no further pass, but it needs a loss that is not at its minimum. With an `output`, "noise" is not
            measured: the output metric takes its place.
        seed: of the sample, of the noise, which is drawn on the layer's device, and of the probes.
        output: (model, batch) -> floating tensor, the output that matters, such as a pooled embedding; or True for
            the first floating tensor of what the model returns, without masked positions. With it each layer gets its
            `output_metric`, of the gradients of random projections of the output; no parameter needs a gradient.
        likelihood: "normal" measures squared errors of the output; "softmax", for logits, draws labels from the
            model's own softmax along the last dimension, one at each position (the Fisher matrix). By default "softmax"
            where output=True and the model itself names what it returns `logits`, else "normal".
        probes: backward passes per batch. Each draws one standard normal vector, or one set of labels, per example.
        mask: a key of dict batches, or a function of a batch, whose tensor [examples, length] is nonzero at real
            tokens: rows of padding are left out of samples, moments and metrics wherever a layer's input is
            [examples, length, ..., in] or [examples * length, in]. None leaves nothing out, but with an `output` heeds
            "attention_mask" in dict batches; False leaves nothing out.

    Raises:
        BadInput: no layer matches, no batch was given, a value is NaN or infinite, all gradients are zero, the output
            has no gradient, or a weight is on the meta device (as those of offloaded layers are) or quantised.
    """
    if samples < 1:
        raise BadInput(f"samples is {samples}, but at least 1 row per layer is needed")
    if sensitivity not in SENSITIVITIES:
        raise BadInput(f"there is no sensitivity {sensitivity!r}{near_miss(sensitivity, SENSITIVITIES)}")
    if not output and (likelihood is not None or probes != 1):
        raise BadInput(
            "likelihood and probes are of the output's gradients; name the output: output=True or a callable"
        )
    probe = Probes(output, likelihood, probes, seed) if output else None
    groups, now = _groups(model, layers, exclude), Pass()
    inputs = SharedMoments(min(samples, MULTIPLIED))
    recorders = [
        Recorder(names[0], found[0], RowSample(samples, seed + index), inputs, now)
        for index, (names, found) in enumerate(groups)
    ]
    run = Passes(model, recorders, now, loss, probe, mask)
    run.all(batches, groups)
    never = [recorder.name for recorder in recorders if recorder.rows.fit.seen == 0]
    if never:
        raise BadInput(
            f"these layers never ran, or only on held-out examples: {', '.join(never)}; give more batches or exclude "
            "them by exclude=[...]"
        )
    run.check_gradients()
    captured = []
    for names, found in groups:
        captured.append(_layer(names, found[0], recorders.pop(0), run))  # each frees what it was made from
    if probe is not None:
        _name_layers_without_influence(captured)
    if loss is None or (probe is not None and sensitivity == "noise"):
        return Layers(tuple(captured))
    if sensitivity == "gradient":
        sensitivities = {layer.name: gradient_sensitivity(layer, run.largest_batch) for layer in captured}
        if max(sensitivities.values()) == 0:
            raise BadInput(
                "the loss has no gradient at any layer's output, as at its minimum; use sensitivity='noise', or a loss "
                "against labels"
            )
    else:
        sensitivities = noise_sensitivities(model, groups, run.first, loss, seed)
    floor = 1e-3 * max(max(sensitivities.values()), 1e-9)
    return Layers(tuple(replace(layer, sensitivity=max(sensitivities[layer.name], floor)) for layer in captured))


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


def _layer(names: Sequence[str], found: Dense, recorder: Recorder, run: Passes) -> Layer:
    inputs, held_out = recorder.rows.tensors(names[0])
    seen, gradients = recorder.rows.fit.seen, recorder.rows_with_gradient(run.gradients)
    weight, probes = found.weight.detach(), run.probes
    count = 0 if probes is None else run.examples * probes.count
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
        gradient_moment=run.gradients.mean(names[0], gradients) if gradients else None,
        calls=recorder.calls,
        aliases=tuple(names[1:]),
        output_metric=None if probes is None else run.metrics.metric(names[0], found.out_features, count),
    )


def _name_layers_without_influence(layers: Sequence[Layer]) -> None:
    without = [x.name for x in layers if x.output_metric is not None and not float(x.output_metric.trace) > 0]
    if without:
        warnings.warn(
            f"the output does not depend on these layers, whose output metric is zero: {', '.join(without)}; plans may "
            "replace them by anything; leave them out by exclude=[...] if that is not what you want",
            stacklevel=3,
        )
