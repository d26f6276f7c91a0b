"""Validation: plans on the front are applied to copies of the model and evaluated with the user's metric."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn

from basis_search.layers.collection import Layers
from basis_search.planning.plan import Plan
from basis_search.replacement.export import apply_

Metric = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Validation:
    """The user's metric of the model that a plan makes.

    Attributes:
        plan: as given.
        metric: of the replaced model.
        dense: of the dense model.
    """

    plan: Plan
    metric: float
    dense: float


def validate(
    model: nn.Module,
    plans: Iterable[Plan],
    metric: Metric,
    *,
    layers: Layers | None = None,
    replace: Callable[[nn.Module, Plan], nn.Module] | None = None,
) -> list[Validation]:
    """Applies each non-dominated plan to a copy of the model and evaluates the metric.

    Args:
        model: the dense model; unchanged.
        plans: of `plans()`; those that another equals or beats in damage and in every quantity are left out.
        metric: model -> number, such as the accuracy on a validation set.
        layers: what the plans are fitted to, where they were read from a file.
        replace: (copy, plan) -> replaced model, such as a refit; `apply_` if None.
    """
    dense = float(metric(model))
    found = []
    for plan in front(plans):
        copied = copy.deepcopy(model)
        copied = apply_(copied, plan, layers) if replace is None else replace(copied, plan)
        found.append(Validation(plan, float(metric(copied)), dense))
    return found


def front(plans: Iterable[Plan]) -> list[Plan]:
    """Plans that no other dominates in damage, FLOPs, latency and parameters; of equal ones the first."""
    found: list[tuple[Plan, tuple[float, ...]]] = []
    for plan in plans:
        costs = (plan.damage, *(plan.totals[q] for q in ("flops", "latency", "parameters")))
        if any(all(a <= b for a, b in zip(other, costs, strict=True)) for _, other in found):
            continue
        found = [(p, c) for p, c in found if not all(a <= b for a, b in zip(costs, c, strict=True))]
        found.append((plan, costs))
    return [plan for plan, _ in found]
