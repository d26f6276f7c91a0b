"""Which of optuna's samplers suits a space and a number of trials: the rule, and its exceptions by name.

Thousands of trials: NSGA-II, whose cost per trial does not grow. A few numbers, one of them fine-grained, and no
choices: Gaussian processes. All else, and whatever is conditional: TPE over the groups of parameters that go together.
"""

from __future__ import annotations

import random
import warnings
from typing import TYPE_CHECKING, Any

from basis_search.errors import BadInput, near_miss
from basis_search.families import family as family_named
from basis_search.layers.layer import Layer
from basis_search.study.proposals import RandomTrial

if TYPE_CHECKING:
    import optuna

SAMPLERS = ("auto", "tpe", "gp", "nsga2", "random")
MANY = 1000
"""From so many trials on: NSGA-II."""
MOST_NUMBERS, FINE, MOST_FOR_GP = 8, 64, 200
PROBES = 64


def require(name: str) -> None:
    """Raises BadInput if there is no sampler of that name."""
    if name not in SAMPLERS:
        raise BadInput(f"there is no sampler {name!r}{near_miss(name, SAMPLERS)}")


def choose(name: str, layer: Layer, family: str, space: Any, trials: int) -> str:
    """What "auto" stands for in this space; any other name is its own answer.

    Raises:
        BadInput: there is no sampler of that name, or the family has no spec for the layer.
    """
    require(name)
    if name != "auto":
        return name
    if trials >= MANY:
        return "nsga2"
    return "gp" if trials <= MOST_FOR_GP and _small_and_continuous(layer, family, space) else "tpe"


def _small_and_continuous(layer: Layer, family: str, space: Any) -> bool:
    rng, module = random.Random(0), family_named(family)
    asked: set[tuple[str, ...]] = set()
    kinds: set[str] = set()
    values: dict[str, set[Any]] = {}
    for _ in range(PROBES):
        trial = RandomTrial(rng)
        module.suggest(trial, layer, space)
        asked.add(tuple(sorted(trial.params)))
        kinds |= set(trial.kinds.values())
        for key, value in trial.params.items():
            values.setdefault(key, set()).add(value)
    if len(asked) != 1 or "categorical" in kinds or not 1 <= len(values) <= MOST_NUMBERS:
        return False
    # Of n uniform draws from k values, n - n^2 / 2k are distinct: most of 64 only if k is well above that.
    return "float" in kinds or max(map(len, values.values())) > PROBES * 2 // 3


def make(name: str, seed: int, trials: int) -> optuna.samplers.BaseSampler:
    """A sampler by its own name, as `choose` gave it."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed)
        if name == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=max(4, trials // 8))
        if name == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(
            multivariate=True, group=True, constant_liar=True, n_startup_trials=max(4, trials // 4), seed=seed
        )
