"""What specs are worth before they are tried: forecasts corrected by measurements, and what each would add to a front.

Volumes are of logarithms, log(reference / value) for error, FLOPs ratio and latency ratio: a tenth of the error counts
the same wherever it is saved. log of a value ~ log of its forecast + a kernel-weighted mean of the residuals seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from basis_search.evaluation.evaluate import Candidate, Evaluation
from basis_search.study.proposals import (
    LEAST,
    Guess,
    Traits,
    logarithms,
)

Floats = npt.NDArray[np.float64]

REFERENCE = (1.0, 1.5, 3.0)
"""Error, FLOPs ratio, latency ratio of no interest: those of `ParetoFront.hypervolume`."""
POINTS = 8192
WIDTH = 0.7  # of the kernel, in log FLOPs
OCTAVES = 1.5  # of the kernel, in log2 of the spec's numbers
KIN, STRANGERS = 0.25, 0.02  # weight of a residual of the same family, of another
PRIOR = (0.7, 0.35)  # standard deviations of log error and log latency before anything is measured
SHRINK, DOUBT = 0.1, 0.5  # how many measurements the forecast itself, and the prior spread, are worth
VARIED = 0.3


@dataclass(frozen=True)
class Expected:
    """Error and latency ratio of a guess after correction, each with the standard deviation of its logarithm."""

    error: float
    latency_ratio: float
    error_spread: float
    latency_spread: float


@dataclass
class Residuals:
    """What measurements said of forecasts: log of found over foretold, by traits and log FLOPs."""

    traits: list[Traits] = field(default_factory=list)
    places: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def add(self, traits: Traits, foretold: Sequence[float], found: Sequence[float], weight: float = 1.0) -> None:
        """Takes in one finished evaluation, as logarithms; `weight` below 1 for one of another layer."""
        self.traits.append(traits)
        self.places.append(foretold[1])
        self.errors.append(found[0] - foretold[0])
        self.latencies.append(found[2] - foretold[2])
        self.weights.append(weight)

    def correct(self, guesses: Sequence[Guess]) -> Floats:
        """[guesses, 4]: log error, log latency, and the standard deviations of both."""
        logs = np.array([g.logs for g in guesses]).reshape(-1, 3)
        errors, latencies = logs[:, 0].copy(), logs[:, 2].copy()
        spreads = np.tile(np.array(PRIOR), (len(guesses), 1))
        if self.traits:
            near = np.exp(-0.5 * ((logs[:, 1:2] - np.array(self.places)) / WIDTH) ** 2)
            weights = np.array(self.weights) * (STRANGERS + near * self._kinship(guesses))
            total = weights.sum(1)
            for column, residuals, moved in ((0, self.errors, errors), (1, self.latencies, latencies)):
                shift = weights @ np.array(residuals) / (total + SHRINK)
                moved += shift
                apart = (weights * (np.array(residuals) - shift[:, None]) ** 2).sum(1)
                spreads[:, column] = np.sqrt((apart + PRIOR[column] ** 2 * DOUBT) / (total + DOUBT))
        return np.column_stack([errors, latencies, spreads])

    def _kinship(self, guesses: Sequence[Guess]) -> Floats:
        """[guesses, residuals]: 1 for the same traits, KIN for the same family, 0 for another."""
        found = np.zeros((len(guesses), len(self.traits)))
        for family in {t.family for t in self.traits}:
            mine = [i for i, g in enumerate(guesses) if g.family == family]
            theirs = [j for j, t in enumerate(self.traits) if t.family == family]
            if mine:
                words = np.array(
                    [[guesses[i].traits.words == self.traits[j].words for j in theirs] for i in mine], dtype=np.float64
                )
                a = np.array([guesses[i].traits.numbers for i in mine])[:, None]
                b = np.array([self.traits[j].numbers for j in theirs])[None]
                close = np.exp(-0.5 * (((a - b) / OCTAVES) ** 2).sum(2))
                found[np.ix_(mine, theirs)] = KIN + (1 - KIN) * words * close
        return found


class Volume:
    """The logarithmic volume that points dominate, by evenly spread samples of the box from `LEAST` to `REFERENCE`."""

    def __init__(self, points: int = POINTS):
        low, high = np.log(LEAST), np.log(REFERENCE)
        # The additive sequence of least discrepancy in three dimensions, by powers of the root of x^4 = x + 1.
        root = 1.2207440846057596
        steps = root ** -np.arange(1, 4)
        self.samples: Floats = low + (high - low) * ((0.5 + np.outer(np.arange(points), steps)) % 1.0)
        self.free = np.ones(points, dtype=bool)

    def add(self, logs: Sequence[float]) -> None:
        """Takes a point into the front."""
        self.free &= ~(self.samples >= np.array(logs)).all(1)

    @property
    def share(self) -> float:
        """Of the box, what is dominated."""
        return 1.0 - float(self.free.mean())

    def gains(self, logs: Floats) -> Floats:
        """Of the box, what each of the points [n, 3] would add."""
        samples = self.samples[self.free]
        gains = np.empty(len(logs))
        for start in range(0, len(logs), 256):  # a block of booleans at a time: megabytes, not hundreds
            part = logs[start : start + 256]
            inside = samples[None, :, 0] >= part[:, None, 0]
            for column in (1, 2):
                inside &= samples[None, :, column] >= part[:, None, column]
            gains[start : start + 256] = inside.sum(1)
        return gains / len(self.samples)


class Forecasts:
    """The specs that a search of a layer could try, and what is expected of them after what it has measured."""

    def __init__(self, guesses: Iterable[Guess], seed: tuple[int, ...] = (0,)):
        self._seed = seed
        self._by_hash = {guess.hash: guess for guess in guesses}
        self.residuals = Residuals()
        self.volume = Volume()
        self._learnt: set[str] = set()

    def known(self, candidate: Candidate) -> Guess | None:
        """The guess of a spec, if there is one."""
        return self._by_hash.get(candidate.hash)

    def include(self, guess: Guess) -> None:
        """A spec that was not drawn but proposed by somebody else."""
        self._by_hash.setdefault(guess.hash, guess)

    def learn(self, evaluations: Iterable[Evaluation]) -> None:
        """Takes in what was measured on this layer; each evaluation counts once."""
        for e in evaluations:
            if e.failure is None and e.candidate.hash not in self._learnt:
                self._learnt.add(e.candidate.hash)
                found = logarithms(e.objectives)
                self.volume.add(found)
                if (mine := self._by_hash.get(e.candidate.hash)) is not None:
                    self.residuals.add(mine.traits, mine.logs, found)

    def expect(self, guess: Guess) -> Expected:
        """Error and latency of a guess, corrected by what was measured."""
        error, latency, *spreads = self.residuals.correct([guess])[0]
        return Expected(math.exp(error), math.exp(latency), spreads[0], spreads[1])

    def best(
        self, tried: Collection[str], allowed: Callable[[Guess], bool] = lambda guess: True
    ) -> tuple[Guess, float] | None:
        """The untried guess that is expected to add most volume, and that volume as a share of the box.

        Averaged over errors and latencies one standard deviation better and worse than expected, which itself is
        varied by VARIED of one: searches with other seeds, and workers side by side, try other specs.
        """
        left = [g for g in self._by_hash.values() if g.hash not in tried and allowed(g)]
        if not left:
            return None
        error, latency, *spreads = self.residuals.correct(left).T
        flops = np.array([g.logs[1] for g in left])
        varied = VARIED * np.random.default_rng([*self._seed, len(tried)]).standard_normal((2, len(left)))
        error, latency = error + varied[0] * spreads[0], latency + varied[1] * spreads[1]
        gains = np.zeros(len(left))
        for better, faster in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            logs = [np.maximum(error + better * spreads[0], math.log(LEAST[0])), flops, latency + faster * spreads[1]]
            gains += self.volume.gains(np.column_stack(logs)) / 4
        winner = int(np.argmax(gains))
        return left[winner], float(gains[winner])
