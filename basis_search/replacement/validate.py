"""Validation: plans on the front are applied to copies of the model and evaluated with the user's metric."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from basis_search.layers.collection import Layers
from basis_search.planning.plan import Plan
from basis_search.planning.uniform import candidates, uniform_assignments
from basis_search.replacement.export import apply_

Metric = Callable[[nn.Module], float]
MOST_UNIFORM = 4
"""Uniform assignments measured for each plan, those of least predicted damage."""


@dataclass(frozen=True)
class UniformValidation:
    """The user's metric of the model that a uniform assignment within a plan's budget makes.

    Attributes:
        label: such as "int8 (reduce_range true) everywhere".
        plan: the assignment.
        metric: of the replaced model.
    """

    label: str
    plan: Plan
    metric: float


@dataclass(frozen=True)
class Validation:
    """The user's metric of the model that a plan makes.

    Attributes:
        plan: as given.
        metric: of the replaced model.
        dense: of the dense model.
        uniform: the same of uniform assignments within the plan's budget.
    """

    plan: Plan
    metric: float
    dense: float
    uniform: tuple[UniformValidation, ...] = ()

    @property
    def beaten_by(self) -> UniformValidation | None:
        """The uniform assignment whose metric is nearest to dense, if it is nearer than the plan's."""
        best = min(self.uniform, key=lambda u: abs(u.metric - self.dense), default=None)
        return best if best is not None and abs(best.metric - self.dense) < abs(self.metric - self.dense) else None


def validate(
    model: nn.Module,
    plans: Iterable[Plan],
    metric: Metric,
    *,
    layers: Layers | None = None,
    replace: Callable[[nn.Module, Plan], nn.Module] | None = None,
    uniform: int = MOST_UNIFORM,
) -> list[Validation]:
    """Applies each non-dominated plan to a copy of the model and evaluates the metric.

    One family and spec everywhere, or dense layers but for one family, may do better by the metric than the plan of
    least predicted damage: those within a plan's budget are measured as well, each once, and a warning says where one
    is nearer to the dense model's metric.

    Args:
        model: the dense model; unchanged.
        plans: of `plans()`; those that another equals or beats in damage and in every quantity are left out.
        metric: model -> number, such as the accuracy on a validation set.
        layers: what the plans are fitted to, where they were read from a file.
        replace: (copy, plan) -> replaced model, such as a refit; `apply_` if None.
        uniform: so many uniform assignments are measured for each plan, those of least predicted damage; none for
            plans without the table that they were chosen from.
    """

    def measured(plan: Plan) -> float:
        copied = copy.deepcopy(model)
        copied = apply_(copied, plan, layers) if replace is None else replace(copied, plan)
        return float(metric(copied))

    dense, found = float(metric(model)), []
    known: dict[frozenset[Any], float] = {}  # of uniform assignments, which many budgets share
    for plan in front(plans):
        value = measured(plan)
        others = uniform_assignments(plan)[: max(0, uniform)]
        for other in others:
            if (key := candidates(other.plan)) not in known:
                known[key] = measured(other.plan)
        validation = Validation(
            plan, value, dense, tuple(UniformValidation(o.label, o.plan, known[candidates(o.plan)]) for o in others)
        )
        found.append(validation)
        if (best := validation.beaten_by) is not None:
            warnings.warn(
                f"{plan.name}: {best.label}, within the same budget, has the metric {best.metric:.4g}, nearer to dense "
                f"({dense:.4g}) than the plan's {value:.4g}; their predicted damages are {best.plan.damage:.3g} and "
                f"{plan.damage:.3g}",
                stacklevel=2,
            )
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
