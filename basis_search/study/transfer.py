"""Transfer between layers: the layers of a kind are given what lies on the fronts of those that were searched."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from basis_search.errors import BadInput
from basis_search.evaluation import constraints
from basis_search.evaluation.candidate import Candidate, Evaluation
from basis_search.evaluation.pareto import ParetoFront
from basis_search.evaluation.timing import fingerprint
from basis_search.families import family as family_named
from basis_search.layers.layer import Layer
from basis_search.study.loop import NoFamilyAccepts, search_layer
from basis_search.study.settings import SearchSettings
from basis_search.workers.worker import PAUSE, Worker


def kinds(layers: Iterable[Layer]) -> dict[str, list[Layer]]:
    """Layers by kind (rows, features, bias, dtype) and model of device, the most sensitive first.

    Raises:
        BadInput: there is no layer.
    """
    found: dict[str, list[Layer]] = {}
    for layer in layers:
        found.setdefault(f"{layer.kind} on {_model_of(layer.device)}", []).append(layer)
    if not found:
        raise BadInput("no layer was given; capture at least one")
    return {kind: sorted(members, key=lambda layer: -sensitivity(layer)) for kind, members in found.items()}


def sensitivity(layer: Layer) -> float:
    """How much the output 0 costs the model: in its output metric, or by the measured rise of its loss."""
    return layer.sensitivity if layer.metric_sensitivity is None else layer.metric_sensitivity


def warn_without_influence(layers: Iterable[Layer]) -> None:
    """Warns of layers whose output metric is zero, on which the model's output does not depend."""
    names = [layer.name for layer in layers if layer.metric_sensitivity == 0]
    if names:
        warnings.warn(
            f"the model's output does not depend on {', '.join(names)} (the output metric is zero): there the cheapest "
            "candidate is as good as any; if it should depend, see what capture's output= returns",
            stacklevel=3,
        )


def _model_of(device: torch.device) -> str:
    """The model of a GPU, whose latencies hold for its twins; else the type of device."""
    return fingerprint(device, threads=0).name if device.type == "cuda" else device.type


def leaders(layers: Sequence[Layer], leads: int | None) -> list[Layer]:
    """The `leads` most sensitive layers of each kind, in the order given; all layers if None."""
    names = {layer.name for members in kinds(layers).values() for layer in members[:leads]}
    return [layer for layer in layers if layer.name in names]


def search_layers(
    layers: Sequence[Layer],
    settings: SearchSettings,
    worker: Worker,
    stop: Callable[[], bool],
    *,
    leads: int | None = None,
    groups: Iterable[Sequence[Layer]] = (),
    report: Callable[[Layer, ParetoFront | NoFamilyAccepts], None] = lambda layer, found: None,
) -> None:
    """Searches many layers as one of the workers that share a record; returns when all of the work is done.

    Args:
        layers: all layers of the model.
        settings, worker, stop: as `search_layer`.
        leads: layers of each kind that are searched; the kind's others get what lies on these layers' fronts.
        groups: layers that must share a spec: each gets what lies on the front of any of its group.
        report: called with each layer that was searched, and its front or the reason that it has none.
    """

    def search(layer: Layer, settings: SearchSettings, wait: bool) -> None:
        try:
            report(layer, search_layer(layer, settings, worker, stop, wait))
        except NoFamilyAccepts as reason:
            report(layer, reason)

    if worker.number == 0:
        warn_without_influence(layers)
    searched = leaders(layers, leads)
    for layer in searched:
        if not stop():
            search(layer, settings, wait=False)
    for layer in searched:  # what other workers were evaluating by then: they finish, or die and it is taken over
        claimed = {f: s for f, s in settings.spaces.items() if worker.leased_by_others(layer, f)}
        if claimed and not stop():
            search(layer, settings if settings.total else dataclasses.replace(settings, spaces=claimed), wait=True)
    if not stop():
        follow_leaders(worker, layers, leads, settings.limits, stop)
        follow_groups(worker, groups, settings.limits, stop)


def follow_leaders(
    worker: Worker, layers: Iterable[Layer], leads: int | None, limits: Mapping[str, float], stop: Callable[[], bool]
) -> None:
    """Evaluates what lies on the fronts of the `leads` first layers of each kind on the kind's other layers."""
    wanted: list[tuple[Layer, Candidate]] = []
    for members in kinds(layers).values():
        others = members[leads:] if leads is not None else []
        wanted += _candidates(others, proven(worker, members[:leads], limits))
    wanted.sort(key=lambda pair: pair[0].name)  # a child process loads a layer once, not once per candidate
    evaluate_all(worker, wanted, stop)


def follow_groups(
    worker: Worker, groups: Iterable[Sequence[Layer]], limits: Mapping[str, float], stop: Callable[[], bool]
) -> None:
    """Evaluates what lies on the front of any layer of a group on all of that group, which must share a spec."""
    wanted: list[tuple[Layer, Candidate]] = []
    for members in groups:
        wanted += _candidates(members, proven(worker, members, limits))
    # A plan may choose for a group what is on the front of one of its layers alone.
    evaluate_all(dataclasses.replace(worker, beyond_fronts=True), wanted, stop)


def proven(worker: Worker, layers: Iterable[Layer], limits: Mapping[str, float]) -> list[Evaluation]:
    """What lies on the layers' fronts within the limits, each family and spec once."""
    worker.record.refresh()
    found: dict[tuple[str, object], Evaluation] = {}
    for layer in layers:
        for e in ParetoFront.of(e for e in worker.evaluations_of(layer) if constraints.kept(limits, e)).evaluations:
            found.setdefault((e.candidate.family, e.candidate.spec), e)
    return list(found.values())


def _candidates(layers: Sequence[Layer], found: Iterable[Evaluation]) -> list[tuple[Layer, Candidate]]:
    """Each spec on each of the layers; a spec whose shape does not fit one of them is left out."""
    return [
        (layer, Candidate(layer.name, e.candidate.family, e.candidate.spec))
        for e in found
        if all(_fits_shape(layer, e.candidate) for layer in layers)
        for layer in layers
    ]


def _fits_shape(layer: Layer, candidate: Candidate) -> bool:
    try:
        family_named(candidate.family).cost(candidate.spec, layer)
    except BadInput:
        return False
    return True


def evaluate_all(worker: Worker, wanted: Sequence[tuple[Layer, Candidate]], stop: Callable[[], bool]) -> None:
    """Returns when the record holds an evaluation of each, by any worker, or when `stop` returns True."""
    left = list(wanted)
    while left and not stop():
        others = []
        for layer, candidate in left:
            if stop():
                return
            worker.record.refresh()
            while worker.take_over(layer, candidate.family) is not None:
                pass
            known = worker.look_up(layer, candidate, None) or worker.evaluate(layer, candidate, None)
            if known is None:
                others.append((layer, candidate))
        if len(others) == len(left):
            time.sleep(PAUSE)  # other workers are evaluating all of them: they finish, or die and it is taken over
        left = others
