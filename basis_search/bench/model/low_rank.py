"""Low rank for a budget of FLOPs: the same share of every layer, or the ranks of least summed damage."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torch import nn

from basis_search.bench.model.task import Task
from basis_search.errors import BadInput
from basis_search.evaluation.candidate import Candidate, Evaluation
from basis_search.evaluation.timing import fingerprint
from basis_search.families import dense, lowrank
from basis_search.layers.layer import Layer
from basis_search.layers.output_spectrum import output_energies, searched_power
from basis_search.planning.plan import Plan
from basis_search.replacement.export import replace_layers
from basis_search.replacement.structured_linear import fit


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
    """The ranks, or dense layers, of least summed damage; without metrics, of least summed relative error.

    Singular values of all layers in the order of their squares per FLOP, which is optimal but for the last one.

    Raises:
        BadInput: rank 1 everywhere exceeds the budget.
    """
    layers = list(layers)
    steps = []
    for layer in layers:
        weight = layer.sensitivity if layer.output_metric is None else searched_power(layer)
        energies = weight * output_energies(layer)
        tails = [*energies.flip(0).cumsum(0).flip(0).tolist(), 0.0]
        most = min(len(tails) - 1, (flops(layer, None) - 1) // flops(layer, 1))
        points = [(rank, flops(layer, rank), tails[rank]) for rank in range(1, most + 1)]
        hull = _hull([*points, (None, flops(layer, None), 0.0)])
        steps += [((a[2] - b[2]) / (b[1] - a[1]), layer.name, a, b) for a, b in itertools.pairwise(hull)]
    chosen: dict[str, int | None] = {layer.name: 1 for layer in layers}
    left = budget * sum(flops(layer, None) for layer in layers) - sum(flops(layer, 1) for layer in layers)
    if left < 0:
        raise BadInput(f"rank 1 everywhere takes more than {budget} of the dense layers' FLOPs")
    for _, name, before, after in sorted(steps, key=lambda step: -step[0]):
        if chosen[name] == before[0] and (cost := after[1] - before[1]) <= left:
            chosen[name], left = after[0], left - cost
    return chosen


_Point = tuple[int | None, int, float]  # rank, FLOPs, damage


def _hull(points: Sequence[_Point]) -> list[_Point]:
    """Those on the lower convex hull of damage over FLOPs."""
    hull: list[_Point] = []
    for point in points:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(a: _Point, b: _Point) -> float:
    return (b[2] - a[2]) / (b[1] - a[1])


def plan(layers: Iterable[Layer], ranks: Mapping[str, int | None]) -> Plan:
    """These ranks as a plan, with forecast errors and latencies."""
    known = {layer.name: layer for layer in layers}
    choices = {name: evaluation(layer, ranks[name]) for name, layer in known.items()}
    return Plan({}, choices, dict.fromkeys(choices, 1.0), known)


def evaluation(layer: Layer, rank: int | None, like: Evaluation | None = None) -> Evaluation:
    """What a forecast says of a rank, or of the dense layer.

    Args:
        like: an evaluation of the layer, whose device and dense latency it has; else a second on one thread.
    """
    weight = dense.cost(dense.Spec(), layer)
    if rank is None:
        candidate, error, cost, ratio = Candidate(layer.name, "dense", dense.Spec()), 0.0, weight, 1.0
    else:
        spec = lowrank.Spec(rank=rank)
        said, cost = lowrank.forecast(spec, layer), lowrank.cost(spec, layer)
        candidate, error, ratio = Candidate(layer.name, "lowrank", spec), said.error, said.latency_ratio
    seconds = 1.0 if like is None else like.latency / like.latency_ratio
    weighted = None if layer.output_metric is None else error
    return Evaluation(
        candidate, error, 0.0, "torch", seconds * ratio, ratio, 0.0, cost, weight,
        fingerprint(layer.device, 1) if like is None else like.device, layer.sensitivity, layer.content_hash,
        calls=layer.calls, kind=layer.kind, weighted_error=weighted,
        damage=None if weighted is None else weighted * searched_power(layer),
    )  # fmt: skip


def replaced(task: Task, layers: Iterable[Layer], ranks: Mapping[str, int | None]) -> nn.Module:
    """A copy of the task's model with low-rank layers; where there is no rank, the layer stays."""
    model = copy.deepcopy(task.model)
    for layer in layers:
        rank = ranks[layer.name]
        if rank is not None:
            module = fit(layer, "lowrank", lowrank.Spec(rank=rank))
            replace_layers(model, {(layer.name, *layer.aliases): module})
    return model
