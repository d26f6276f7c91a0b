"""What was proven on one layer is evaluated on others, by all workers of a run together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from basis_search.errors import BadInput
from basis_search.evaluation import constraints as bounds
from basis_search.evaluation.code_version import code_version
from basis_search.evaluation.evaluate import Candidate, Evaluation
from basis_search.evaluation.pareto import ParetoFront
from basis_search.evaluation.timing import fingerprint
from basis_search.families import family as family_named
from basis_search.layers.layer import Layer
from basis_search.workers.worker import PAUSE, Worker


def kinds(layers: Iterable[Layer]) -> dict[str, list[Layer]]:
    """Layers by kind (rows, features, bias, dtype) and device, the most sensitive first.

    Raises:
        BadInput: there is no layer.
    """
    found: dict[str, list[Layer]] = {}
    for layer in layers:
        found.setdefault(f"{layer.kind} on {layer.device}", []).append(layer)
    if not found:
        raise BadInput("no layer was given; capture at least one")
    return {kind: sorted(members, key=lambda layer: -layer.sensitivity) for kind, members in found.items()}


def follow_leaders(
    worker: Worker, layers: Iterable[Layer], leads: int, limits: Mapping[str, float], stop: Callable[[], bool]
) -> None:
    """Evaluates what lies on the fronts of the `leads` first layers of each kind on the kind's other layers."""
    missing: list[tuple[Layer, Candidate]] = []
    for members in kinds(layers).values():
        missing += _pairs(members[leads:], proven(worker, members[:leads], limits))
    evaluate_all(worker, missing, stop)


def follow_groups(
    worker: Worker, groups: Iterable[Sequence[Layer]], limits: Mapping[str, float], stop: Callable[[], bool]
) -> None:
    """Evaluates what lies on the front of any layer of a group on all of that group, which must share a spec."""
    missing: list[tuple[Layer, Candidate]] = []
    for members in groups:
        missing += _pairs(members, proven(worker, members, limits))
    evaluate_all(worker, missing, stop)


def proven(worker: Worker, layers: Iterable[Layer], limits: Mapping[str, float]) -> list[Evaluation]:
    """What lies on the layers' fronts and keeps the limits, each family and spec once."""
    worker.record.refresh()
    found: dict[tuple[str, object], Evaluation] = {}
    for layer in layers:
        device = fingerprint(layer.device, worker.threads)
        evaluations = worker.record.of(layer.content_hash, device=device, code=code_version())
        for e in ParetoFront.of(e for e in evaluations if bounds.kept(limits, e)).evaluations:
            found.setdefault((e.candidate.family, e.candidate.spec), e)
    return list(found.values())


def _pairs(layers: Sequence[Layer], found: Iterable[Evaluation]) -> list[tuple[Layer, Candidate]]:
    """What is of use on these layers: each spec that none of them is of the wrong shape for, on each of them."""
    return [
        (layer, Candidate(layer.name, e.candidate.family, e.candidate.spec))
        for e in found
        if all(_has_a_shape_for(layer, e.candidate) for layer in layers)
        for layer in layers
    ]


def _has_a_shape_for(layer: Layer, candidate: Candidate) -> bool:
    try:
        family_named(candidate.family).cost(candidate.spec, layer)
    except BadInput:
        return False
    return True


def evaluate_all(worker: Worker, wanted: Sequence[tuple[Layer, Candidate]], stop: Callable[[], bool]) -> None:
    """Returns when each of them is on the record, whoever evaluated it, or when `stop` says so."""
    left = list(wanted)
    while left and not stop():
        others = []
        for layer, candidate in left:
            if stop():
                return
            worker.record.refresh()
            while worker.take_up(layer, candidate.family) is not None:
                pass
            known = worker.look_up(layer, candidate, None) or worker.evaluate(layer, candidate, None)
            if known is None:
                others.append((layer, candidate))
        if len(others) == len(left):
            time.sleep(PAUSE)  # the other workers have all of them in hand: they finish, or die over it
        left = others
