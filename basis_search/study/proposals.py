"""Candidates drawn from the search spaces, with their costs and their predicted errors and latencies."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from basis_search.errors import BadInput
from basis_search.evaluation.candidate import Candidate
from basis_search.families import family as family_named
from basis_search.families.protocol import Cost, Forecast
from basis_search.layers.layer import Layer

LEAST = (1e-6, 1e-2, 1e-2)
"""Error, FLOPs ratio and latency ratio below which an improvement counts for nothing."""
POOL_SIZE = 600
"""Most draws from one family's space."""
REPEATS_UNTIL_EXHAUSTED = 100
"""After so many draws in a row of known specs, a space counts as exhausted."""


class RandomTrial:
    """Stands in for an optuna trial: uniform values, and a note of each parameter's value and kind.

    Attributes:
        params: value of each parameter.
        kinds: "categorical", "integer" or "float" for each parameter.
    """

    def __init__(self, rng: random.Random):
        self._rng = rng
        self.params: dict[str, Any] = {}
        self.kinds: dict[str, str] = {}

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._note(name, "categorical", self._rng.choice(list(choices)))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        if log:
            value = min(high, max(low, round(math.exp(self._rng.uniform(math.log(low - 0.5), math.log(high + 0.5))))))
        else:
            value = low + step * self._rng.randint(0, (high - low) // step)
        return int(self._note(name, "integer", value))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        if step is not None:
            value = low + step * self._rng.randint(0, int((high - low) / step + 1e-9))
        elif log:
            value = math.exp(self._rng.uniform(math.log(low), math.log(high)))
        else:
            value = self._rng.uniform(low, high)
        return float(self._note(name, "float", value))

    def _note(self, name: str, kind: str, value: Any) -> Any:
        self.params.setdefault(name, value)
        self.kinds[name] = kind
        return self.params[name]


@dataclass(frozen=True)
class Traits:
    """Features of a spec by which the surrogate compares it with others.

    Attributes:
        family: its name.
        words: the fields that are not numbers; for a text of more than 16 characters, `numbers` holds its length in
            words instead.
        numbers: log2(1 + |n|) of the numeric fields.
    """

    family: str
    words: tuple[str, ...]
    numbers: tuple[float, ...]


@dataclass(frozen=True)
class Proposal:
    """A spec that a search could evaluate, with its cost and its closed-form predictions.

    Attributes:
        params: the parameters with which an optuna trial makes `suggest` return this spec.
        traits: what the surrogate compares.
        forecast: predicted error and latency ratio.
        logs: logarithms of predicted error, FLOPs ratio and predicted latency ratio.
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
        """`Candidate.hash` of family and spec."""
        return Candidate("", self.family, self.spec).hash


def proposal_of(layer: Layer, family: str, spec: Any, params: Mapping[str, Any]) -> Proposal:
    """A spec with its cost and predictions for a layer."""
    module, dense = family_named(family), family_named("dense")
    cost, dense_cost = module.cost(spec, layer), dense.cost(dense.Spec(), layer)
    forecast = module.forecast(spec, layer)
    logs = logarithms((forecast.error, cost.flops / dense_cost.flops, forecast.latency_ratio))
    return Proposal(family, spec, dict(params), traits_of(family, spec), cost, forecast, logs)


def traits_of(family: str, spec: Any) -> Traits:
    """Traits of a spec."""
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
    """Logarithms of error, FLOPs ratio and latency ratio, each clipped from below at `LEAST`."""
    first, second, third = (math.log(max(v, least)) for v, least in zip(values, LEAST, strict=True))
    return first, second, third


def draw(layer: Layer, family: str, space: Any, size: int = POOL_SIZE, seed: tuple[int, ...] = (0,)) -> list[Proposal]:
    """Distinct specs found by `size` uniform draws from a family's space; equal seeds draw equal specs.

    Raises:
        BadInput: the family has no spec for the layer.
    """
    rng = random.Random(repr(seed))
    module = family_named(family)
    found: dict[Any, Proposal] = {}
    repeats = 0
    for _ in range(size):
        trial = RandomTrial(rng)
        spec = module.suggest(trial, layer, space)
        if spec in found:
            repeats += 1
        else:
            repeats, found[spec] = 0, proposal_of(layer, family, spec, trial.params)
        if repeats > REPEATS_UNTIL_EXHAUSTED:
            break
    return list(found.values())


def accepts(layer: Layer, family: str, space: Any) -> bool:
    """Whether the family has a spec for the layer, which is found out without weights or inputs."""
    try:
        family_named(family).suggest(RandomTrial(random.Random(0)), layer, space)
    except BadInput:
        return False
    return True


def draw_pool(
    layer: Layer, spaces: Mapping[str, Any], size: int = POOL_SIZE, seed: tuple[int, ...] = (0,)
) -> Iterable[Proposal]:
    """`draw` for several families; one that has no spec for the layer is left out."""
    for family, space in spaces.items():
        try:
            yield from draw(layer, family, space, size, seed)
        except BadInput:
            continue  # the search reports the reason
