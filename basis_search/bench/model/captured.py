"""A task's layers with their output metrics, captured once into its folder."""

from __future__ import annotations

from pathlib import Path

from basis_search.bench.model.task import Task
from basis_search.layers.capture import capture
from basis_search.layers.collection import Layers

SAMPLES = 8192


def captured(task: Task, folder: Path) -> Layers:
    """From FOLDER/NAME/captured, captured if that is not there; delete it to capture anew."""
    directory = folder / task.name / "captured"
    if not (directory / "layers.json").is_file():
        layers_of(task).save(directory)
    return Layers.load(directory)


def layers_of(task: Task, samples: int = SAMPLES) -> Layers:
    """The task's layers with their inputs' moments and output metrics."""
    likelihood = "softmax" if task.categorical else "normal"
    return capture(task.model, task.calibration, task.pattern, samples, output=task.output, likelihood=likelihood)
