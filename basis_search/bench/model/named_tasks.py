"""The tasks by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from basis_search.bench.model import digits, encoder, language
from basis_search.bench.model.task import Task

FOLDER = Path("runs/model")
"""Trained models, captured layers and searches; each in a folder of its task's name."""

TASKS: dict[str, Callable[[Path], Task]] = {
    "encoder": encoder.task,
    "digits": digits.task,
    "language": language.task,
}
