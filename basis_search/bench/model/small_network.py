"""A small residual network with a normalised output, and output metrics of its layers by their definition."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basis_search.layers.capture import capture
from basis_search.layers.collection import Layers
from basis_search.layers.output_metric import OutputMetric

WIDTH, BLOCKS, EXAMPLES, TOKENS = 32, 3, 96, 6


class SmallNetwork(nn.Module):
    """Blocks x + down(gelu(up(x))) of unlike scales; the output is the normalised mean over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.ModuleList(nn.Linear(WIDTH, 4 * WIDTH) for _ in range(BLOCKS))
        self.down = nn.ModuleList(nn.Linear(4 * WIDTH, WIDTH) for _ in range(BLOCKS))
        self.head = nn.Linear(WIDTH, WIDTH // 2)

    def forward(self, x: Tensor) -> Tensor:
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(F.gelu(up(F.layer_norm(x, (WIDTH,)))))
        return F.normalize(self.head(x).mean(1), dim=-1)


def inputs(examples: int, seed: int) -> Tensor:
    """[examples, tokens, width], correlated."""
    draw, mixing = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(1)
    decay = torch.arange(1, WIDTH + 1) ** -0.5
    return torch.randn(examples, TOKENS, WIDTH, generator=draw) * decay @ torch.randn(WIDTH, WIDTH, generator=mixing)


def output(model: nn.Module, batch: Any) -> Tensor:
    found: Tensor = model(batch)
    return found


def captured(model: SmallNetwork, probes: int = 8) -> Layers:
    """The network's layers with output metrics."""
    batches = list(inputs(4 * EXAMPLES, seed=2).to(model.head.weight).split(EXAMPLES))  # type: ignore[no-untyped-call]
    layers, metrics = capture(model, batches), output_metrics(model, batches, probes)
    return Layers(tuple(replace(layer, output_metric=OutputMetric(metrics[layer.name])) for layer in layers))


def output_metrics(model: nn.Module, batches: list[Tensor], probes: int) -> dict[str, Tensor]:
    """G of every nn.Linear, float64: the mean over examples and probes of the sum over rows of g g^T."""
    sums: dict[str, Tensor | float] = defaultdict(float)
    draw = torch.Generator().manual_seed(3)  # on the CPU: the same on every device
    seen: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda module, args, y, n=name: seen.__setitem__(n, y))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        for batch in batches:
            f = model(batch)
            for _ in range(probes):
                v = torch.randn(f.shape, generator=draw).to(f)
                gradients = torch.autograd.grad((f * v).sum(), list(seen.values()), retain_graph=True)
                for name, g in zip(seen, gradients, strict=True):
                    rows = g.reshape(-1, g.shape[-1]).double()
                    sums[name] = sums[name] + rows.T @ rows
    finally:
        for handle in handles:
            handle.remove()
    count = probes * sum(map(len, batches))
    return {name: torch.as_tensor(total) / count for name, total in sums.items()}
