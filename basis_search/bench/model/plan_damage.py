"""Predicted damage of plans against the squared change of the model's output that they cause.

The damage of a plan is the sum of its layers' damages, to first order and as if errors of different layers were
independent. Random plans over all families and budgets show how far that holds.
"""

from __future__ import annotations

import copy
import math
import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from basis_search.errors import BadInput
from basis_search.evaluation.candidate import Evaluation
from basis_search.layers.collection import Layers
from basis_search.layers.layer import Layer
from basis_search.planning.plan import Plan
from basis_search.replacement.export import apply_

Output = Callable[[nn.Module, Any], Tensor]
"""(model, batch) -> the tensor that matters, [examples, ...]."""

PLANS = 50
SHARES = (0.9, 0.75, 0.6, 0.5, 0.33, 0.25)
"""Shares of the dense layers' FLOPs that random plans are drawn around."""
SPREAD = 0.4
"""Standard deviation of the logarithm of a layer's share around the plan's."""


def plan_damages(
    model: nn.Module,
    layers: Layers,
    table: Mapping[str, Sequence[Evaluation]],
    output: Output,
    batches: Iterable[Any],
    *,
    plans: int = PLANS,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """One row per share of the FLOPs and one of all plans together.

    "rank correlation" (Spearman) is of predicted and measured damages; "measured / predicted" is the median of their
    ratio, beside its least and largest value: 1 where damages add up.

    Args:
        model: dense, in the state in which its layers were captured; unchanged.
        layers: captured, with output metrics.
        table: evaluations of each layer, or its front.
        output: as for `capture`; the damage is in units of its square.
        batches: that no layer was captured on.
        plans: number of random plans.
        seed: of the plans.

    Raises:
        BadInput: a layer without evaluations, or evaluations without damage.
    """
    for name, evaluations in table.items():
        if not evaluations or any(e.damage is None for e in evaluations):
            raise BadInput(
                f"the layer {name!r} has no evaluation with a damage; capture it with capture(..., output=...) and "
                "search it again"
            )
    rng, known = random.Random(seed), list(batches)
    dense = outputs(model, output, known)
    found: list[tuple[float, float, float]] = []  # share, predicted, measured
    for number in range(plans):
        share = SHARES[number % len(SHARES)]
        plan = random_plan(table, share, rng, layers)
        replaced = apply_(copy.deepcopy(model), plan, layers)
        found.append((share, plan.damage, squared_change(dense, outputs(replaced, output, known))))
    groups = [(f"FLOPs about {share}", [f for f in found if f[0] == share]) for share in SHARES]
    return [_row(case, pairs) for case, pairs in [*groups, ("all", found)] if pairs]


def _row(case: str, found: Sequence[tuple[float, float, float]]) -> dict[str, Any]:
    predicted, measured = [p for _, p, _ in found], [m for _, _, m in found]
    factors = [m / p if p > 0 else math.nan for p, m in zip(predicted, measured, strict=True)]
    return {
        "case": case,
        "plans": len(found),
        "rank correlation": rank_correlation(predicted, measured),
        "predicted": statistics.median(predicted),
        "measured": statistics.median(measured),
        "measured / predicted": statistics.median(factors),
        "least": min(factors),
        "largest": max(factors),
    }


def random_plan(
    table: Mapping[str, Sequence[Evaluation]], share: float, rng: random.Random, layers: Iterable[Layer]
) -> Plan:
    """In each layer a random family's candidate whose FLOPs are nearest to a random share around `share`."""
    choices = {}
    for name, evaluations in table.items():
        families = sorted({e.candidate.family for e in evaluations})
        family, wanted = rng.choice(families), share * math.exp(rng.gauss(0, SPREAD))
        of_family = [e for e in evaluations if e.candidate.family == family]
        choices[name] = min(of_family, key=lambda e: abs(math.log(e.flops_ratio / wanted)))
    return Plan({"flops": share}, choices, {}, {layer.name: layer for layer in layers})


@torch.no_grad()
def outputs(model: nn.Module, output: Output, batches: Iterable[Any]) -> list[Tensor]:
    """[examples, ...] of each batch, in eval mode, float64."""
    training = model.training
    model.eval()
    try:
        return [output(model, batch).double() for batch in batches]
    finally:
        model.train(training)


def squared_change(dense: Sequence[Tensor], replaced: Sequence[Tensor]) -> float:
    """Mean over the examples of the squared distance of the outputs."""
    total = sum(float((a - b).square().sum()) for a, b in zip(dense, replaced, strict=True))
    return total / sum(map(len, dense))


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's: the correlation of the ranks, equal values sharing their mean rank; NaN where one is constant."""
    ranks = [_ranks(np.asarray(values, dtype=np.float64)) for values in (a, b)]
    first, second = (r - r.mean() for r in ranks)
    scale = math.sqrt(float((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / scale if scale > 0 else math.nan


def _ranks(values: Any) -> Any:
    below = (values[None, :] < values[:, None]).sum(1)
    equal = (values[None, :] == values[:, None]).sum(1)
    return below + (equal - 1) / 2
