"""How much a model's loss rises per unit of relative squared error at a layer's output: by noise, or by gradients."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from basis_search.layers.dense_modules import Dense, Group, dense
from basis_search.layers.frozen import frozen
from basis_search.layers.layer import Layer

NOISE = 0.1
"""Relative squared size of the noise added to a layer's output to measure the loss's sensitivity."""
NOISE_BATCHES = 4


def gradient_sensitivity(layer: Layer, examples: int) -> float:
    """Rise of the loss, to second order, per unit of relative squared error spread evenly over the outputs."""
    if layer.gradient_moment is None:
        return 0.0
    placed = layer.on_device()
    weight, wide = placed.weight.float(), placed.inputs.float()
    if placed.moment is None:
        squares = (wide @ weight.T).square().sum(dtype=torch.float64) / len(wide)
    else:
        squares = ((weight @ placed.moment.float()) * weight).sum(dtype=torch.float64)
    signal = float(squares)  # E |y|^2 without the bias
    gradient = float(layer.gradient_moment.diagonal().sum(dtype=torch.float64)) / layer.out_features
    return 0.5 * examples * layer.batch * layer.calls * gradient * signal


@torch.no_grad()
def noise_sensitivities(
    model: nn.Module,
    groups: Sequence[Group],
    batches: Sequence[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    seed: int,
) -> dict[str, float]:
    """Rise of the mean loss per unit of relative squared noise on each layer's output, by the layer's first name.

    The noise is drawn where the layer runs. One pass per layer and batch; up to the layer's first call, dense layers
    return what they returned in the pass without noise, which is held for one batch.
    """
    rises = defaultdict[str, float](float)
    noises = [_Noise(found[0], seed + index) for index, (_, found) in enumerate(groups)]
    with frozen(model, parameters=False), _replayed(model) as replay:
        for batch in batches:
            replay.record()
            clean = float(loss(model, batch))
            for (names, found), noise in zip(groups, noises, strict=True):
                replay.restart()
                handles = [
                    module.register_forward_hook(lambda module, args, output, n=noise: n(output, replay))
                    for module in {id(d.module): d.module for d in found}.values()
                ]
                try:
                    rises[names[0]] += float(loss(model, batch)) - clean
                finally:
                    for handle in handles:
                        handle.remove()
    return {name: rise / len(batches) / NOISE for name, rise in rises.items()}


class _Noise:
    """Noise of one layer; a generator draws through all batches."""

    def __init__(self, layer: Dense, seed: int):
        self._layer, self._seed = layer, seed
        self._generator: torch.Generator | None = None

    def __call__(self, output: Tensor, replay: _Replay) -> Tensor:
        replay.stop()
        view = self._layer.view
        rows = view.last(output)
        if self._generator is None:
            self._generator = torch.Generator(rows.device).manual_seed(self._seed)
        signal = rows if self._layer.bias is None else rows - self._layer.bias
        noise = torch.randn(rows.shape, generator=self._generator, device=rows.device).to(rows.dtype)
        return view.restore(rows + noise * (NOISE * signal.square().mean()).sqrt())


class _Replay:
    """Outputs of modules in one pass, returned again in later passes until replay is switched off."""

    def __init__(self) -> None:
        self._outputs: dict[nn.Module, list[tuple[torch.Size, Tensor, int]]] = defaultdict(list)
        self._calls: dict[nn.Module, int] = defaultdict(int)
        self._records = self._replays = False

    def record(self) -> None:
        self._outputs.clear()
        self._records, self._replays = True, False

    def restart(self) -> None:
        self._calls.clear()
        self._records, self._replays = False, True

    def stop(self) -> None:
        self._replays = False

    def forward(self, module: nn.Module, forward: Callable[..., Tensor], args: Any, kwargs: Any) -> Tensor:
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        if self._replays:
            call = self._calls[module]
            self._calls[module] += 1
            if call < len(self._outputs[module]):
                shape, output, version = self._outputs[module][call]
                if shape == x.shape and version == output._version:  # nobody changed it in place
                    return output
        output = forward(*args, **kwargs)
        if self._records and not output.is_inference():
            self._outputs[module].append((x.shape, output, output._version))
        return output


@contextmanager
def _replayed(model: nn.Module) -> Iterator[_Replay]:
    """Within, the dense layers of the model answer to the replay; not those with a forward method of their own.

    Neither compiled models nor replicas, which take the modules' attributes to other places.
    """
    replay = _Replay()
    modules = [m for m in model.modules() if dense(m) is not None and "forward" not in vars(m)]
    modules = [m for m in modules if not isinstance(m, nn.Linear) or type(m).forward is nn.Linear.forward]
    copied = any(m._compiled_call_impl is not None or type(m).__name__ in COPIES for m in model.modules())
    changed = [] if copied else modules
    for module in changed:
        forward = module.forward
        module.forward = lambda *args, m=module, f=forward, **kwargs: replay.forward(m, f, args, kwargs)
    try:
        yield replay
    finally:
        for module in changed:
            del module.forward


COPIES = ("OptimizedModule", "DataParallel")
