"""Specs that a search could try: drawn from each family's space, with what they cost and what is foretold of them."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from basis_search.errors import BadInput
from basis_search.evaluation.evaluate import Candidate
from basis_search.families import family as family_named
from basis_search.families.protocol import Cost, Forecast
from basis_search.layers.layer import Layer

LEAST = (1e-6, 1e-2, 1e-2)
"""Of error, FLOPs ratio and latency ratio: below these nothing more is gained."""
DRAWS = 600
IDLE = 100  # draws in a row without anything new: the space is all known


class Draw:
    """Stands for an optuna trial where only the space is wanted: uniform values, and a note of what was asked."""

    def __init__(self, rng: random.Random):
        self._rng = rng
        self.params: dict[str, Any] = {}
        self.kinds: dict[str, str] = {}
        """Of each parameter: "categorical", "integer" or "float"."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._keep(name, "categorical", self._rng.choice(list(choices)))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        if log:
            value = min(high, max(low, round(math.exp(self._rng.uniform(math.log(low - 0.5), math.log(high + 0.5))))))
        else:
            value = low + step * self._rng.randint(0, (high - low) // step)
        return int(self._keep(name, "integer", value))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        if step is not None:
            value = low + step * self._rng.randint(0, int((high - low) / step + 1e-9))
        elif log:
            value = math.exp(self._rng.uniform(math.log(low), math.log(high)))
        else:
            value = self._rng.uniform(low, high)
        return float(self._keep(name, "float", value))

    def _keep(self, name: str, kind: str, value: Any) -> Any:
        self.params.setdefault(name, value)
        self.kinds[name] = kind
        return self.params[name]


@dataclass(frozen=True)
class Traits:
    """Family, the spec's words, and log2(1 + n) of its numbers; of a longer text, of how many parts it has."""

    family: str
    words: tuple[str, ...]
    numbers: tuple[float, ...]


@dataclass(frozen=True)
class Guess:
    """A spec that could be tried, and what is foretold of it.

    Attributes:
        params: what an optuna trial has to be given for `suggest` to make this spec.
        traits: what it has in common with others whose forecasts are wrong in the same way.
        logs: of error, FLOPs ratio and latency ratio.
    """

    family: str
    spec: Any
    params: Mapping[str, Any]
    traits: Traits
    cost: Cost
    forecast: Forecast
    logs: tuple[float, float, float]

    @cached_property
    def hash(self) -> str:
        return Candidate("", self.family, self.spec).hash


def guess(layer: Layer, family: str, spec: Any, params: Mapping[str, Any]) -> Guess:
    """A spec with its cost and its forecast."""
    module, dense = family_named(family), family_named("dense")
    cost, whole = module.cost(spec, layer), dense.cost(dense.Spec(), layer)
    forecast = module.forecast(spec, layer)
    logs = logarithms((forecast.error, cost.flops / whole.flops, forecast.latency_ratio))
    return Guess(family, spec, dict(params), traits_of(family, spec), cost, forecast, logs)


def traits_of(family: str, spec: Any) -> Traits:
    """Of any spec."""
    words, numbers = [], []
    for field in fields(spec):
        value = getattr(spec, field.name)
        if isinstance(value, str) and len(value) > 16:
            value = len(re.findall(r"\w+", value))
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            numbers.append(math.log2(1 + abs(value)))
        else:
            words.append(str(value))
    return Traits(family, tuple(words), tuple(numbers))


def logarithms(values: Sequence[float]) -> tuple[float, float, float]:
    """Of error, FLOPs ratio and latency ratio, none below `LEAST`."""
    first, second, third = (math.log(max(v, least)) for v, least in zip(values, LEAST, strict=True))
    return first, second, third


def draw(layer: Layer, family: str, space: Any, draws: int = DRAWS, seed: tuple[int, ...] = (0,)) -> list[Guess]:
    """Up to `draws` distinct specs of a family with their forecasts; the same for a seed.

    Raises:
        BadInput: the family has none for the layer.
    """
    rng = random.Random(repr(seed))
    module = family_named(family)
    found: dict[Any, Guess] = {}
    idle = 0
    for _ in range(draws):
        trial = Draw(rng)
        spec = module.suggest(trial, layer, space)
        if spec in found:
            idle += 1
        else:
            idle, found[spec] = 0, guess(layer, family, spec, trial.params)
        if idle > IDLE:
            break
    return list(found.values())


def drawn(layer: Layer, spaces: Mapping[str, Any], draws: int = DRAWS, seed: tuple[int, ...] = (0,)) -> Iterable[Guess]:
    """The same of several families; one that has no spec for the layer is left out."""
    for family, space in spaces.items():
        try:
            yield from draw(layer, family, space, draws, seed)
        except BadInput:
            continue  # the search itself says why
