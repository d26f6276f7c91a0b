"""Documented import paths of 0.1.0 that moved: each imports as a module that forwards to the new one."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

MOVED = {
    "basis_search.huggingface": "basis_search.replacement.huggingface",
    "basis_search.linears": "basis_search.layers.dense_modules",  # pickled StructuredLinear modules name it
    "basis_search.record": "basis_search.workers.evaluation_log",
    "basis_search.structured": "basis_search.replacement.structured_linear",
    "basis_search.torch_operator": "basis_search.replacement.torch_operator",
    "basis_search.schemes.actions": "basis_search.schemes.algebra.transforms",
    "basis_search.schemes.additions": "basis_search.schemes.programs.additions",
    "basis_search.schemes.alternative_basis": "basis_search.schemes.programs.alternative_basis",
    "basis_search.schemes.emit": "basis_search.schemes.programs.emit",
    "basis_search.schemes.formats": "basis_search.schemes.flips.format_graph",
    "basis_search.schemes.points": "basis_search.schemes.constructions.points",
}


class MovedFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the old paths; it comes last, so that it never hides a module that exists."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self) if name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Attributes are looked up in the new module."""
        new = importlib.import_module(MOVED[module.__name__])

        def forward(name: str) -> Any:
            return getattr(new, name)

        module.__doc__ = new.__doc__
        module.__dict__.update(__getattr__=forward, __dir__=lambda: dir(new))


def install() -> None:
    """Makes the old paths importable in this process; more than once does nothing more."""
    if not any(isinstance(finder, MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(MovedFinder())
