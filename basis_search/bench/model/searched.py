"""Plans from a search of every family: each family with dense layers, all together, and int8 everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from basis_search.bench.model.task import Task
from basis_search.layers.collection import Layers


def rows(task: Task, layers: Layers, folder: Path, budgets: tuple[float, ...]) -> Iterator[dict[str, Any]]:
    yield from ()
