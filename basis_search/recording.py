"""Takes layers from a model while it runs: weights, inputs seen, moments, and how much the loss feels each layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from basis_search.captured import Layers, matches
from basis_search.errors import BadInput
from basis_search.layer import HELD_OUT_FRACTION, Layer

NOISE = 0.1
"""Relative squared error that is put on a layer's output to measure the loss's sensitivity."""
NOISE_BATCHES = 4


class _Rows:
    """A uniform sample of at most `limit` of the rows shown, with no need to know how many will come."""

    def __init__(self, limit: int, generator: torch.Generator):
        self.limit, self.generator, self.seen = limit, generator, 0
        self.rows: Tensor | None = None
        self.keys: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        if len(rows) == 0:
            return
        self.seen += len(rows)
        keys = torch.rand(len(rows), generator=self.generator)
        rows = rows.detach().cpu()
        if self.rows is not None and self.keys is not None:
            rows, keys = torch.cat([self.rows, rows]), torch.cat([self.keys, keys])
        if len(rows) > self.limit:
            kept = keys.topk(self.limit, largest=False).indices.sort().values
            rows, keys = rows[kept], keys[kept]
        self.rows, self.keys = rows.clone(), keys


class _Recorder:
    """Forward and gradient hooks of one layer."""

    def __init__(self, linear: nn.Linear, samples: int, seed: int, with_gradient: bool):
        generator = torch.Generator().manual_seed(seed)
        self.fit = _Rows(samples, generator)
        self.held_out = _Rows(max(1, math.ceil(samples * HELD_OUT_FRACTION)), generator)
        self.moment = torch.zeros(linear.in_features, linear.in_features, dtype=torch.float64)
        self.gradient_moment = torch.zeros(linear.out_features, linear.out_features, dtype=torch.float64)
        self.gradient_rows = 0
        self.with_gradient = with_gradient
        self.batch = self.rows_of_this_forward = 0
        self.batches_seen = 0

    def start_forward(self) -> None:
        self.batch = max(self.batch, self.rows_of_this_forward)
        self.rows_of_this_forward = 0

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        x: Tensor = args[0].detach()
        self.rows_of_this_forward += x.numel() // x.shape[-1]
        examples = x.reshape(1, -1, x.shape[-1]) if x.ndim == 1 else x.reshape(x.shape[0], -1, x.shape[-1])
        # Whole examples are held out, not rows of them: tokens of one example are alike.
        if len(examples) > 1:
            held = max(1, int(len(examples) * HELD_OUT_FRACTION))
            fit, judge = examples[:-held], examples[-held:]
        else:
            every = round(1 / HELD_OUT_FRACTION)
            fit, judge = (
                (examples[:0], examples) if self.batches_seen % every == every - 1 else (examples, examples[:0])
            )
        self.batches_seen += 1
        rows = fit.reshape(-1, x.shape[-1])
        self.fit.add(rows)
        self.held_out.add(judge.reshape(-1, x.shape[-1]))
        wide = rows.double().cpu()
        self.moment += wide.T @ wide
        if self.with_gradient and output.requires_grad:
            output.register_hook(self._gradient)  # type: ignore[no-untyped-call]

    def _gradient(self, gradient: Tensor) -> None:
        rows = gradient.detach().reshape(-1, gradient.shape[-1]).double().cpu()
        self.gradient_moment += rows.T @ rows
        self.gradient_rows += len(rows)


def capture(
    model: nn.Module,
    batches: Iterable[Any],
    layers: str | Sequence[str] = "re:.*",
    samples: int = 4096,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    *,
    seed: int = 0,
) -> Layers:
    """Runs the model on the batches and takes from each matching nn.Linear what a search needs.

    A quarter of each batch's examples (dimension 0) is held out to judge by; with batches of one example, every
    fourth batch is.

    Args:
        model: run in eval mode; left as it was.
        batches: each a tensor (model(batch)), a tuple or list (model(*batch)) or a dict (model(**batch)).
        layers: exact names or "re:<regular expression>" on the full name, one or several.
        samples: at most this many rows to fit on per layer, and a quarter as many to judge by.
        loss: (model, batch) -> scalar. With it, second moments of the output gradients are taken too, and each
            layer's sensitivity is measured: the rise of the loss when its output gets noise of relative squared
            size 0.1, per unit of that. The batches are then kept in memory.
        seed: of the sample and of the noise.

    Raises:
        BadInput: no layer matches, no batch was given, or a value is NaN or infinite.
    """
    if samples < 1:
        raise BadInput(f"samples is {samples}, but at least 1 row per layer is needed")
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and matches(n, layers)}
    if not linears:
        names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
        raise BadInput(f"no nn.Linear matches {layers!r}; the model has: {', '.join(names) or 'none'}")
    if loss is not None:
        batches = list(batches)
    recorders = {
        name: _Recorder(linear, samples, seed + index, loss is not None)
        for index, (name, linear) in enumerate(linears.items())
    }
    training = model.training
    model.eval()
    handles = [linears[name].register_forward_hook(recorder) for name, recorder in recorders.items()]
    try:
        count = 0
        for batch in batches:
            count += 1
            for recorder in recorders.values():
                recorder.start_forward()
            if loss is None:
                with torch.no_grad():
                    _forward(model, batch)
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
    never = [name for name, recorder in recorders.items() if recorder.fit.rows is None]
    if never:
        raise BadInput(
            f"these layers never ran, or only on held-out examples: {', '.join(never)}; give more batches or exclude "
            "them by the pattern"
        )
    taken = []
    for name, recorder in recorders.items():
        weight, bias = linears[name].weight.detach(), linears[name].bias
        fit, held_out = recorder.fit, recorder.held_out
        if held_out.rows is None or fit.rows is None:
            raise BadInput(f"layer {name!r} saw too few examples to hold any out; give at least 2 examples")
        taken.append(
            Layer(
                name=name,
                weight=weight.cpu().clone(),
                bias=None if bias is None else bias.detach().cpu().clone(),
                inputs=fit.rows,
                held_out=held_out.rows,
                batch=recorder.batch,
                dtype=weight.dtype,
                sensitivity=1.0,
                moment=(recorder.moment / fit.seen).float() if fit.seen > len(fit.rows) else None,
                gradient_moment=(recorder.gradient_moment / recorder.gradient_rows).float()
                if recorder.gradient_rows
                else None,
            )
        )
    if loss is None:
        return Layers(tuple(taken))
    sensitivities = _sensitivities(model, linears, list(batches)[:NOISE_BATCHES], loss, seed)
    return Layers(tuple(replace(layer, sensitivity=sensitivities[layer.name]) for layer in taken))


def _forward(model: nn.Module, batch: Any) -> None:
    if isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, tuple | list):
        model(*batch)
    else:
        model(batch)


@torch.no_grad()
def _sensitivities(
    model: nn.Module,
    linears: Mapping[str, nn.Linear],
    batches: Sequence[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    seed: int,
) -> dict[str, float]:
    """Rise of the mean loss per unit of relative squared noise on each layer's output; at least a hair above 0."""
    training = model.training
    model.eval()
    try:
        clean = [float(loss(model, batch)) for batch in batches]
        result = {}
        for index, (name, linear) in enumerate(linears.items()):
            generator = torch.Generator().manual_seed(seed + index)

            def noisy(
                module: nn.Module, args: Any, output: Tensor, bias: Any = linear.bias, g: torch.Generator = generator
            ) -> Tensor:
                signal = output if bias is None else output - bias
                noise = torch.randn(output.shape, generator=g).to(output.device, output.dtype)
                return output + noise * (NOISE * signal.square().mean()).sqrt()

            handle = linear.register_forward_hook(noisy)
            try:
                rises = [float(loss(model, b)) - c for b, c in zip(batches, clean, strict=True)]
            finally:
                handle.remove()
            result[name] = sum(rises) / len(rises) / NOISE
        floor = 1e-3 * max(max(result.values()), 1e-9)
        return {name: max(value, floor) for name, value in result.items()}
    finally:
        model.train(training)
