"""What a search tries next where it can tell: what did well on layers alike, then what forecasts expect most of."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from basis_search.errors import BadInput
from basis_search.evaluation import constraints
from basis_search.evaluation.evaluate import Candidate, Evaluation
from basis_search.evaluation.pareto import ParetoFront
from basis_search.families import family as family_named
from basis_search.layers.layer import Layer
from basis_search.layers.output_spectrum import shape
from basis_search.study.proposals import (
    DRAWS,
    Guess,
    drawn,
    guess,
    logarithms,
    traits_of,
)
from basis_search.study.surrogate import Forecasts

OWN_TURN = 6
"""Each so many-th trial is the sampler's own, whatever the forecasts say: they may be wrong where nobody looked."""
WARM_SHARE = 4
"""A search of n trials tries at most n / 4 specs first that did well on layers alike."""
ALIKE = 0.3
TRUST = 0.3
"""Weight of what another, equal layer's measurements said of forecasts, against this layer's own."""


class Given:
    """Stands for an optuna trial whose parameters are known.

    Raises:
        KeyError: a parameter is asked for that was not given.
        ValueError: one is out of its range here.
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


class Guide:
    """Proposes specs for one layer.

    Args:
        layer: what is searched.
        spaces: by family.
        bounds: what candidates have to keep, see `basis_search.evaluation.constraints`.
        others: evaluations of other layers, of this run and of earlier ones; those of this layer are passed over.
        draws: specs per family to choose from at most; 0 leaves all proposals to samplers.
        seed: of what is drawn and of how forecasts are varied; workers differ in it, so that they try other specs.
    """

    def __init__(
        self,
        layer: Layer,
        spaces: Mapping[str, Any],
        bounds: Mapping[str, float] | None = None,
        others: Iterable[Evaluation] = (),
        seed: tuple[int, ...] = (0,),
        draws: int = DRAWS,
    ):
        self.layer, self.spaces, self.bounds = layer, spaces, bounds or {}
        self.forecasts = Forecasts(drawn(layer, spaces, draws, seed) if draws else (), seed)
        dense = family_named("dense")
        self._dense_cost = dense.cost(dense.Spec(), layer)
        self._tried: set[str] = set()
        self._warm: set[str] = set()
        self._warm_tried = 0
        if draws:
            self._take_in([e for e in others if e.layer_hash != layer.content_hash and e.spectrum])

    def _take_in(self, others: list[Evaluation]) -> None:
        mine = shape(self.layer)
        by_layer: dict[str, list[Evaluation]] = {}
        for e in others:
            if e.failure is None and e.candidate.family in self.spaces:
                by_layer.setdefault(e.layer_hash, []).append(e)
        for evaluations in by_layer.values():
            like = likeness(self.layer, mine, evaluations[0])
            for e in evaluations:
                if "forecast" in e.rungs:
                    foretold = logarithms((e.rungs["forecast"], e.flops_ratio, e.rungs["forecast latency"]))
                    traits = traits_of(e.candidate.family, e.candidate.spec)
                    self.forecasts.residuals.add(traits, foretold, logarithms(e.objectives), TRUST * like)
            if like >= ALIKE:
                for e in ParetoFront.of(evaluations).evaluations:
                    self._warm_up(e)

    def _warm_up(self, e: Evaluation) -> None:
        """Takes in a spec of another layer, if this layer's space makes one of the same parameters."""
        family = e.candidate.family
        try:
            spec = family_named(family).suggest(Given(e.asked), self.layer, self.spaces[family])
        except (KeyError, ValueError, BadInput):
            return  # the layers are not that alike
        mine = guess(self.layer, family, spec, e.asked)
        self.forecasts.include(mine)
        self._warm.add(mine.hash)

    def propose(self, families: Collection[str], known: Collection[Evaluation], trials: int) -> Guess | None:
        """The next spec of these families; None where a sampler should say.

        Args:
            families: to choose from.
            known: all evaluations of this layer, stopped and failed ones too.
            trials: how many the search is to make.
        """
        self.forecasts.learn(known)
        done = {e.candidate.hash for e in known} | self._tried
        if len(known) % OWN_TURN == OWN_TURN - 1:
            return None

        def allowed(g: Guess) -> bool:
            return g.family in families and all(
                amount <= 0 for amount in constraints.excess(self.bounds, g.cost, self._dense_cost).values()
            )

        if self._warm_tried < trials / WARM_SHARE and self._warm:
            first = self.forecasts.best(done, lambda g: g.hash in self._warm and allowed(g))
            if first is not None and first[1] > 0:
                self._warm_tried += 1
                return self._chosen(first[0])
        best = self.forecasts.best(done, allowed)
        return self._chosen(best[0]) if best is not None and best[1] > 0 else None

    def _chosen(self, guess: Guess) -> Guess:
        self._tried.add(guess.hash)
        return guess

    def guess(self, family: str, spec: Any, params: Mapping[str, Any]) -> Guess:
        """What is foretold of any spec, whoever proposed it."""
        known = self.forecasts.known(Candidate(self.layer.name, family, spec))
        if known is None:
            known = guess(self.layer, family, spec, params)
            self.forecasts.include(known)
        return known


def likeness(layer: Layer, spectrum: tuple[float, ...], other: Evaluation) -> float:
    """From 1, same shape and spectrum, towards 0: exp(-|log ratio of parameters| - mean |log ratios of spectra|)."""
    apart = abs(math.log(other.dense_cost.parameters / ((layer.in_features + 1) * layer.out_features)))
    if other.kind != layer.kind:
        apart = max(apart, 0.5)  # as many parameters, but not the same sides, rows or number format
    pairs = zip(spectrum, other.spectrum, strict=False)
    differences = [abs(math.log(max(a, 1e-9) / max(b, 1e-9))) for a, b in pairs]
    return math.exp(-apart - sum(differences) / max(1, len(differences)))
