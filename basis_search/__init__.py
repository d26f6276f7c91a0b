"""basis_search: cheaper replacements for dense linear layers, and fast bilinear algorithms on the way.

Names are loaded when first used, so that importing the package costs little.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from basis_search import moved

if TYPE_CHECKING:
    from basis_search import schemes
    from basis_search.errors import BadInput
    from basis_search.evaluation.candidate import Candidate, Evaluation
    from basis_search.evaluation.pareto import ParetoFront
    from basis_search.families import dense, int8, kronecker, lowrank, pq, stl
    from basis_search.layers.capture import capture
    from basis_search.layers.collection import Layers
    from basis_search.layers.layer import Layer, LayerShape
    from basis_search.planning.plan import Plan, plan, plans
    from basis_search.replacement.distill import distill
    from basis_search.replacement.export import (
        apply_,
        load_pretrained,
        save_plan,
        save_pretrained,
    )
    from basis_search.replacement.layer_config import LayerConfig
    from basis_search.replacement.refit import refit
    from basis_search.replacement.structured_linear import StructuredLinear, fit
    from basis_search.replacement.validate import validate
    from basis_search.study.model_search import search_model
    from basis_search.study.search import search
    from basis_search.workers.evaluation_log import Record

_HOMES = {
    "BadInput": "basis_search.errors",
    "Candidate": "basis_search.evaluation.candidate",
    "Evaluation": "basis_search.evaluation.candidate",
    "Layer": "basis_search.layers.layer",
    "LayerConfig": "basis_search.replacement.layer_config",
    "LayerShape": "basis_search.layers.layer",
    "Layers": "basis_search.layers.collection",
    "ParetoFront": "basis_search.evaluation.pareto",
    "Plan": "basis_search.planning.plan",
    "Record": "basis_search.workers.evaluation_log",
    "StructuredLinear": "basis_search.replacement.structured_linear",
    "apply_": "basis_search.replacement.export",
    "capture": "basis_search.layers.capture",
    "distill": "basis_search.replacement.distill",
    "fit": "basis_search.replacement.structured_linear",
    "load_pretrained": "basis_search.replacement.export",
    "plan": "basis_search.planning.plan",
    "plans": "basis_search.planning.plan",
    "refit": "basis_search.replacement.refit",
    "save_plan": "basis_search.replacement.export",
    "save_pretrained": "basis_search.replacement.export",
    "search": "basis_search.study.search",
    "search_model": "basis_search.study.model_search",
    "validate": "basis_search.replacement.validate",
}

__all__ = [  # noqa: RUF022  (grouped as a reader meets them)
    "Layer",
    "LayerShape",
    "Layers",
    "capture",
    "search",
    "search_model",
    "fit",
    "Candidate",
    "Evaluation",
    "ParetoFront",
    "Record",
    "plan",
    "plans",
    "Plan",
    "apply_",
    "refit",
    "validate",
    "distill",
    "save_plan",
    "save_pretrained",
    "load_pretrained",
    "LayerConfig",
    "StructuredLinear",
    "BadInput",
    "schemes",
    "dense",
    "int8",
    "lowrank",
    "stl",
    "kronecker",
    "pq",
]


moved.install()


def __getattr__(name: str) -> Any:
    if name.startswith("_"):  # Python asks for names of its own, which no family has
        raise AttributeError(f"module 'basis_search' has no attribute {name!r}")
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name == "schemes":
        value = importlib.import_module("basis_search.schemes")
    elif name in (families := _families()):
        value = families[name]
    else:
        raise AttributeError(f"module 'basis_search' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *_families()})


def _families() -> dict[str, Any]:
    found: dict[str, Any] = importlib.import_module("basis_search.families").FAMILIES
    return found
