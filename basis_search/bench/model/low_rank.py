"""Low rank for a budget of FLOPs: the same share of every layer, or the ranks of least summed damage."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
from torch import nn

from basis_search.bench.model.task import Task
from basis_search.errors import BadInput
from basis_search.evaluation.candidate import Candidate, Evaluation
from basis_search.evaluation.timing import fingerprint
from basis_search.families import dense, lowrank
from basis_search.layers.layer import Layer
from basis_search.layers.output_spectrum import output_energies, searched_power, tail
from basis_search.planning.knapsack import solve
from basis_search.planning.plan import Plan
from basis_search.replacement.export import replace_layers
from basis_search.replacement.structured_linear import fit

RANKS = 96
"""Ranks of a layer to choose from, evenly spaced."""


def inputs_only(layers: Iterable[Layer]) -> list[Layer]:
    """The layers without their output metrics."""
    return [replace(layer, output_metric=None) for layer in layers]


def flops(layer: Layer, rank: int | None) -> int:
    """Of one forward pass; None is the dense layer."""
    if rank is None:
        return dense.cost(dense.Spec(), layer).flops * layer.calls
    return lowrank.cost(lowrank.Spec(rank=rank), layer).flops * layer.calls


def uniform(layers: Iterable[Layer], budget: float) -> dict[str, int | None]:
    """The same share of each layer's FLOPs; None keeps a layer dense."""
    return {layer.name: max(1, int(budget * flops(layer, None) / flops(layer, 1))) for layer in layers}


def allocated(layers: Iterable[Layer], budget: float) -> dict[str, int | None]:
    """The ranks, or dense layers, of least summed damage; without metrics, of least summed squared error.

    Raises:
        BadInput: rank 1 everywhere exceeds the budget.
    """
    layers = list(layers)
    total = sum(flops(layer, None) for layer in layers)
    choices: list[list[int | None]] = []
    for layer in layers:
        most = min(layer.in_features, layer.out_features, (flops(layer, None) - 1) // flops(layer, 1))
        choices.append([*range(1, most + 1, max(1, most // RANKS)), None])
    damages = []
    for layer, ranks in zip(layers, choices, strict=True):
        energies = output_energies(layer) * searched_power(layer)
        tails = [*energies.flip(0).cumsum(0).flip(0).tolist(), 0.0]
        damages.append(np.array([0.0 if rank is None else tails[rank] for rank in ranks]))
    amounts = [
        np.array([[flops(layer, rank) / total] for rank in ranks]) for layer, ranks in zip(layers, choices, strict=True)
    ]
    chosen = solve(damages, amounts, np.array([budget]))
    if chosen is None:
        raise BadInput(f"rank 1 everywhere takes more than {budget} of the dense layers' FLOPs")
    return {layer.name: ranks[c] for layer, ranks, c in zip(layers, choices, chosen, strict=True)}


def plan(layers: Iterable[Layer], ranks: Mapping[str, int | None]) -> Plan:
    """These ranks as a plan, with predicted errors and no latencies."""
    choices, known = {}, {}
    for layer in layers:
        known[layer.name] = layer
        rank = ranks[layer.name]
        candidate = (
            Candidate(layer.name, "dense", dense.Spec())
            if rank is None
            else Candidate(layer.name, "lowrank", lowrank.Spec(rank=rank))
        )
        error = 0.0 if rank is None else tail(layer, rank)
        cost = dense.cost(dense.Spec(), layer) if rank is None else lowrank.cost(lowrank.Spec(rank=rank), layer)
        choices[layer.name] = Evaluation(
            candidate, error, 0.0, "torch", math.nan, math.nan, 0.0, cost, dense.cost(dense.Spec(), layer),
            fingerprint(layer.device, 1), layer.sensitivity, layer.content_hash, calls=layer.calls, kind=layer.kind,
            weighted_error=error, damage=error * searched_power(layer),
        )  # fmt: skip
    return Plan({}, choices, dict.fromkeys(choices, math.nan), known)


def replaced(task: Task, layers: Iterable[Layer], ranks: Mapping[str, int | None]) -> nn.Module:
    """A copy of the task's model with low-rank layers; where there is no rank, the layer stays."""
    model = copy.deepcopy(task.model)
    for layer in layers:
        rank = ranks[layer.name]
        if rank is not None:
            module = fit(layer, "lowrank", lowrank.Spec(rank=rank))
            replace_layers(model, {(layer.name, *layer.aliases): module})
    return model
