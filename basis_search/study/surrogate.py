"""Surrogate model: closed-form predictions corrected by measurements, and expected gains in dominated volume.

log value ~ log prediction + kernel-weighted mean of the residuals log(measured / predicted) seen so far. Volumes are of
log(reference / value) for error, FLOPs ratio and latency ratio, so that a tenth of the error counts alike at any size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from basis_search.evaluation.candidate import Candidate, Evaluation
from basis_search.layers.layer import Layer
from basis_search.study.proposals import (
    LEAST,
    Proposal,
    Traits,
    logarithms,
    proposal_of,
)

Floats = npt.NDArray[np.float64]

REFERENCE = (1.0, 1.5, 3.0)
"""Reference point of the volume, as in `ParetoFront.hypervolume`: error, FLOPs ratio, latency ratio."""
VOLUME_SAMPLES = 8192
FLOPS_BANDWIDTH = 0.7
"""Of the residuals' kernel, in log FLOPs."""
NUMBERS_BANDWIDTH = 1.5
"""Of the residuals' kernel, in log2 of a spec's numbers."""
SAME_FAMILY_WEIGHT, OTHER_FAMILY_WEIGHT = 0.25, 0.02
"""Least weight of a residual of the same family, of another family; a residual of equal traits has weight 1."""
PRIOR_DEVIATIONS = (0.7, 0.35)
"""Standard deviations of log error and log latency before any measurement."""
ZERO_RESIDUAL_WEIGHT, PRIOR_WEIGHT = 0.1, 0.5
"""How many measurements the uncorrected prediction counts as in the mean, the prior in the deviation."""
PERTURBATION = 0.3
"""Predictions are perturbed by so many standard deviations, so that other seeds and workers try other specs."""


@dataclass(frozen=True)
class Prediction:
    """Corrected error and latency ratio of a proposal, with standard deviations of their logarithms."""

    error: float
    latency_ratio: float
    error_deviation: float
    latency_deviation: float


@dataclass
class Residuals:
    """log(measured / predicted) of error and latency, with the traits and log FLOPs of the specs measured."""

    traits: list[Traits] = field(default_factory=list)
    log_flops: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def add(self, traits: Traits, predicted: Sequence[float], measured: Sequence[float], weight: float = 1.0) -> None:
        """Adds one evaluation, both values as `logarithms`; `weight` is below 1 for another layer's."""
        self.traits.append(traits)
        self.log_flops.append(predicted[1])
        self.errors.append(measured[0] - predicted[0])
        self.latencies.append(measured[2] - predicted[2])
        self.weights.append(weight)

    def correct(self, proposals: Sequence[Proposal]) -> Floats:
        """[proposals, 4]: log error, log latency, and the standard deviations of both."""
        logs = np.array([p.logs for p in proposals]).reshape(-1, 3)
        errors, latencies = logs[:, 0].copy(), logs[:, 2].copy()
        deviations = np.tile(np.array(PRIOR_DEVIATIONS), (len(proposals), 1))
        if self.traits:
            near = np.exp(-0.5 * ((logs[:, 1:2] - np.array(self.log_flops)) / FLOPS_BANDWIDTH) ** 2)
            weights = np.array(self.weights) * (OTHER_FAMILY_WEIGHT + near * self._similarity(proposals))
            total = weights.sum(1)
            for column, residuals, corrected in ((0, self.errors, errors), (1, self.latencies, latencies)):
                mean = weights @ np.array(residuals) / (total + ZERO_RESIDUAL_WEIGHT)
                corrected += mean
                squares = (weights * (np.array(residuals) - mean[:, None]) ** 2).sum(1)
                prior = PRIOR_DEVIATIONS[column] ** 2 * PRIOR_WEIGHT
                deviations[:, column] = np.sqrt((squares + prior) / (total + PRIOR_WEIGHT))
        return np.column_stack([errors, latencies, deviations])

    def _similarity(self, proposals: Sequence[Proposal]) -> Floats:
        """[proposals, residuals]: 1 for equal traits, SAME_FAMILY_WEIGHT or more within a family, else 0."""
        found = np.zeros((len(proposals), len(self.traits)))
        for family in {t.family for t in self.traits}:
            rows = [i for i, p in enumerate(proposals) if p.family == family]
            columns = [j for j, t in enumerate(self.traits) if t.family == family]
            if rows:
                words = np.array(
                    [[proposals[i].traits.words == self.traits[j].words for j in columns] for i in rows],
                    dtype=np.float64,
                )
                a = np.array([proposals[i].traits.numbers for i in rows])[:, None]
                b = np.array([self.traits[j].numbers for j in columns])[None]
                close = np.exp(-0.5 * (((a - b) / NUMBERS_BANDWIDTH) ** 2).sum(2))
                found[np.ix_(rows, columns)] = SAME_FAMILY_WEIGHT + (1 - SAME_FAMILY_WEIGHT) * words * close
        return found


class DominatedVolume:
    """Logarithmic volume that a front dominates, estimated at evenly spread samples of the box LEAST to REFERENCE."""

    def __init__(self, samples: int = VOLUME_SAMPLES):
        low, high = np.log(LEAST), np.log(REFERENCE)
        # The additive sequence of least discrepancy in three dimensions, by powers of the root of x^4 = x + 1.
        root = 1.2207440846057596
        steps = root ** -np.arange(1, 4)
        self.samples: Floats = low + (high - low) * ((0.5 + np.outer(np.arange(samples), steps)) % 1.0)
        self.free = np.ones(samples, dtype=bool)

    def add(self, logs: Sequence[float]) -> None:
        """Adds a point to the front."""
        self.free &= ~(self.samples >= np.array(logs)).all(1)

    @property
    def share(self) -> float:
        """Dominated share of the box."""
        return 1.0 - float(self.free.mean())

    def gains(self, logs: Floats) -> Floats:
        """Share of the box that each of the points [n, 3] would add."""
        samples = self.samples[self.free]
        gains = np.empty(len(logs))
        for start in range(0, len(logs), 256):  # a block of booleans at a time: megabytes, not hundreds
            part = logs[start : start + 256]
            inside = samples[None, :, 0] >= part[:, None, 0]
            for column in (1, 2):
                inside &= samples[None, :, column] >= part[:, None, column]
            gains[start : start + 256] = inside.sum(1)
        return gains / len(self.samples)


class Surrogate:
    """Predictions for a pool of proposals for one layer, corrected by what the search has measured.

    Args:
        layer: what is searched.
        pool: proposals to choose from.
        seed: of the perturbation.
    """

    def __init__(self, layer: Layer, pool: Iterable[Proposal] = (), seed: tuple[int, ...] = (0,)):
        self._layer, self._seed = layer, seed
        self._pool = {proposal.hash: proposal for proposal in pool}
        self.residuals = Residuals()
        self.volume = DominatedVolume()
        self._learnt: set[str] = set()

    def include(self, family: str, spec: Any, params: Mapping[str, Any]) -> Proposal:
        """Adds a spec that was not drawn to the pool; returns the pool's proposal of it."""
        known = self._pool.get(Candidate(self._layer.name, family, spec).hash)
        if known is None:
            known = proposal_of(self._layer, family, spec, params)
            self._pool[known.hash] = known
        return known

    def learn(self, evaluations: Iterable[Evaluation]) -> None:
        """Takes the layer's successful evaluations into account, each once."""
        for e in evaluations:
            if e.failure is None and e.candidate.hash not in self._learnt:
                self._learnt.add(e.candidate.hash)
                measured = logarithms(e.objectives)
                self.volume.add(measured)
                if (proposal := self._pool.get(e.candidate.hash)) is not None:
                    self.residuals.add(proposal.traits, proposal.logs, measured)

    def predict(self, proposal: Proposal) -> Prediction:
        """Corrected error and latency of a proposal."""
        error, latency, *deviations = self.residuals.correct([proposal])[0]
        return Prediction(math.exp(error), math.exp(latency), deviations[0], deviations[1])

    def best(
        self, tried: Collection[str], allowed: Callable[[Proposal], bool] = lambda proposal: True
    ) -> tuple[Proposal, float] | None:
        """The allowed proposal of largest expected gain, and that gain as a share of the volume's box.

        The expectation averages over errors and latencies one standard deviation above and below the prediction, which
        is itself perturbed by PERTURBATION of one.

        Args:
            tried: hashes of candidates to pass over.
            allowed: further condition.
        """
        left = [p for p in self._pool.values() if p.hash not in tried and allowed(p)]
        if not left:
            return None
        error, latency, *deviations = self.residuals.correct(left).T
        flops = np.array([p.logs[1] for p in left])
        noise = PERTURBATION * np.random.default_rng([*self._seed, len(tried)]).standard_normal((2, len(left)))
        error, latency = error + noise[0] * deviations[0], latency + noise[1] * deviations[1]
        gains = np.zeros(len(left))
        for a, b in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            logs = [np.maximum(error + a * deviations[0], math.log(LEAST[0])), flops, latency + b * deviations[1]]
            gains += self.volume.gains(np.column_stack(logs)) / 4
        winner = int(np.argmax(gains))
        return left[winner], float(gains[winner])
