"""Proposals of specs for one layer: those on the fronts of similar layers first, then by largest expected gain."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from basis_search.errors import BadInput
from basis_search.evaluation import constraints
from basis_search.evaluation.candidate import Evaluation
from basis_search.evaluation.pareto import ParetoFront
from basis_search.families import family as family_named
from basis_search.layers.layer import Layer
from basis_search.layers.output_spectrum import shape
from basis_search.study.proposals import (
    Proposal,
    draw_pool,
    logarithms,
    traits_of,
)
from basis_search.study.settings import SearchSettings
from basis_search.study.surrogate import Surrogate

SAMPLER_PERIOD = 6
"""One trial in so many is the sampler's, as predictions may be wrong where nothing was measured."""
WARM_START_DIVISOR = 4
"""At most one trial in so many tries a spec that did well on a similar layer."""
SIMILAR = 0.3
"""`similarity` from which another layer's front is tried first."""
OTHER_LAYER_WEIGHT = 0.3
"""Weight of another layer's residuals, times its similarity, relative to this layer's own."""


class FixedTrial:
    """Stands in for an optuna trial with given parameters; optuna's own only warns of values out of range.

    Raises:
        KeyError: a parameter was not given.
        ValueError: one is out of range.
    """

    def __init__(self, params: Mapping[str, Any]):
        self.params = params

    def suggest_categorical(self, name: str, choices: Collection[Any]) -> Any:
        if self.params[name] not in choices:
            raise ValueError(name)
        return self.params[name]

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        value = self.params[name]
        if not low <= value <= high or (value - low) % step:
            raise ValueError(name)
        return int(value)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        value = self.params[name]
        if not low <= value <= high:
            raise ValueError(name)
        return float(value)


class Proposer:
    """Proposes specs for one layer.

    Args:
        layer: what is searched.
        settings: of the search.
        others: evaluations of other layers, of this run and of earlier ones; those of this layer are ignored.
        worker: number of the worker; each draws another pool and perturbs predictions in another way.

    Attributes:
        surrogate: predictions for the pool, empty where `settings.sampler` proposes alone.
    """

    def __init__(self, layer: Layer, settings: SearchSettings, others: Iterable[Evaluation] = (), worker: int = 0):
        self.layer, self.settings = layer, settings
        seed, size = (settings.seed, worker), settings.pool_size
        self.surrogate = Surrogate(layer, draw_pool(layer, settings.spaces, size, seed) if size else (), seed)
        dense = family_named("dense")
        self._dense_cost = dense.cost(dense.Spec(), layer)
        self._tried: set[str] = set()
        self._warm: set[str] = set()
        self._warm_tried = 0
        if size:
            self._learn_from_layers([e for e in others if e.layer_hash != layer.content_hash and e.spectrum])

    def _learn_from_layers(self, others: list[Evaluation]) -> None:
        spectrum = shape(self.layer)
        by_layer: dict[str, list[Evaluation]] = {}
        for e in others:
            if e.failure is None and e.candidate.family in self.settings.spaces:
                by_layer.setdefault(e.layer_hash, []).append(e)
        for evaluations in by_layer.values():
            similar = similarity(self.layer, spectrum, evaluations[0])
            for e in evaluations:
                if "forecast" in e.rungs:
                    predicted = logarithms((e.rungs["forecast"], e.flops_ratio, e.rungs["forecast latency"]))
                    traits = traits_of(e.candidate.family, e.candidate.spec)
                    self.surrogate.residuals.add(
                        traits, predicted, logarithms(e.objectives), OTHER_LAYER_WEIGHT * similar
                    )
            if similar >= SIMILAR:
                for e in ParetoFront.of(evaluations).evaluations:
                    self._add_warm_start(e)

    def _add_warm_start(self, e: Evaluation) -> None:
        """Adds another layer's spec to the pool, if its parameters lie in this layer's space."""
        family = e.candidate.family
        try:
            spec = family_named(family).suggest(FixedTrial(e.asked), self.layer, self.settings.spaces[family])
        except (KeyError, ValueError, BadInput):
            return
        self._warm.add(self.surrogate.include(family, spec, e.asked).hash)

    def propose(self, families: Collection[str], known: Collection[Evaluation]) -> Proposal | None:
        """The next spec of these families; None where it is the sampler's turn or no gain is expected.

        Args:
            families: to choose from.
            known: all evaluations of this layer, stopped and failed ones included.
        """
        self.surrogate.learn(known)
        done = {e.candidate.hash for e in known} | self._tried
        if len(known) % SAMPLER_PERIOD == SAMPLER_PERIOD - 1:
            return None

        def allowed(p: Proposal) -> bool:
            return p.family in families and self.excess(p) is None

        if self._warm and self._warm_tried < self.settings.budget / WARM_START_DIVISOR:
            first = self.surrogate.best(done, lambda p: p.hash in self._warm and allowed(p))
            if first is not None and first[1] > 0:
                self._warm_tried += 1
                self._tried.add(first[0].hash)
                return first[0]
        best = self.surrogate.best(done, allowed)
        if best is None or best[1] <= 0:
            return None
        self._tried.add(best[0].hash)
        return best[0]

    def excess(self, proposal: Proposal) -> tuple[str, float] | None:
        """The first limit that a proposal's cost exceeds, and its ratio to the dense layer; None if it keeps all."""
        limits = self.settings.limits
        for quantity, amount in constraints.excess(limits, proposal.cost, self._dense_cost).items():
            if amount > 0:
                return quantity, limits[quantity] + amount
        return None


def similarity(layer: Layer, spectrum: tuple[float, ...], other: Evaluation) -> float:
    """exp(-|log ratio of parameters| - mean |log ratios of spectra|): 1 for equal shape and spectrum, towards 0.

    Args:
        layer, spectrum: the one layer, and `output_spectrum.shape` of it.
        other: any evaluation of the other layer.
    """
    distance = abs(math.log(other.dense_cost.parameters / ((layer.in_features + 1) * layer.out_features)))
    if other.kind != layer.kind:
        distance = max(distance, 0.5)  # as many parameters, but not the same sides, rows or number format
    if other.device.is_gpu != (layer.device.type == "cuda"):
        distance = max(distance, 1.0)  # its latencies show little of those here
    pairs = zip(spectrum, other.spectrum, strict=False)
    differences = [abs(math.log(max(a, 1e-9) / max(b, 1e-9))) for a, b in pairs]
    return math.exp(-distance - sum(differences) / max(1, len(differences)))
