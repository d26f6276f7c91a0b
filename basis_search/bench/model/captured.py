"""A task's layers with their output metrics, captured once into its folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from basis_search.bench.model.task import Task
from basis_search.layers.capture import capture
from basis_search.layers.collection import Layers
from basis_search.layers.dense_modules import dense
from basis_search.layers.output_metric import OutputMetric

SAMPLES = 4096


def captured(task: Task, folder: Path) -> Layers:
    """From FOLDER/NAME/layers, captured if that is not there; delete it to capture anew."""
    directory = folder / task.name / "layers"
    if not (directory / "layers.json").is_file():
        layers_of(task).save(directory)
    return Layers.load(directory)


def layers_of(task: Task, samples: int = SAMPLES) -> Layers:
    """The task's layers with their inputs' moments and output metrics."""
    layers = capture(task.model, task.calibration, task.pattern, samples)
    metrics = output_metrics(task, layers.names)
    return Layers(tuple(replace(layer, output_metric=metrics[layer.name]) for layer in layers))


def output_metrics(task: Task, names: list[str], seed: int = 0) -> dict[str, OutputMetric]:
    """G of each layer: one standard normal projection of the output per example, or one label drawn per position."""
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, Tensor] = {}

    def record(name: str) -> Any:
        found = dense(task.model.get_submodule(name))
        assert found is not None

        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            def add(gradient: Tensor) -> None:
                rows = found.view.last(gradient.detach())
                rows = rows.reshape(-1, rows.shape[-1])
                sums[name] = sums.get(name, 0.0) + (rows.T @ rows).double()

            if not output.requires_grad:
                output = output + torch.zeros((), requires_grad=True)
            output.register_hook(add)  # type: ignore[no-untyped-call]
            return output

        return hook

    trained = [p for p in task.model.parameters() if p.requires_grad]
    handles = [task.model.get_submodule(name).register_forward_hook(record(name)) for name in names]
    examples = 0
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        for batch in task.calibration:
            output = task.output(task.model, batch)
            examples += len(output)
            probe(output, task.categorical, generator).backward()  # type: ignore[no-untyped-call]
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for handle in handles:
            handle.remove()
    return {name: OutputMetric((total / examples).float()) for name, total in sums.items()}


def probe(output: Tensor, categorical: bool, generator: torch.Generator) -> Tensor:
    """v . f for v standard normal, or the log-likelihood of labels drawn from the logits' softmax."""
    if not categorical:
        return (output * torch.randn(output.shape, generator=generator)).sum()
    rows = output.flatten(0, -2)
    labels = torch.multinomial(rows.detach().softmax(-1), 1, generator=generator)
    return rows.log_softmax(-1).gather(1, labels).sum()
