"""optuna's samplers: chosen by name, or by search space and number of trials.

NSGA-II from MANY_TRIALS on, as its cost per trial does not grow. Gaussian processes for up to MOST_GP_TRIALS in a space
of few numeric parameters, one of them fine-grained, that are the same in every trial. Otherwise multivariate TPE over
groups of parameters, which handles conditional ones.
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
MANY_TRIALS = 1000
MOST_GP_PARAMETERS, MOST_GP_TRIALS = 8, 200
PROBES = 64
"""Uniform draws that show what parameters a space has."""


def require(name: str) -> None:
    """Raises BadInput if there is no sampler of that name."""
    if name not in SAMPLERS:
        raise BadInput(f"there is no sampler {name!r}{near_miss(name, SAMPLERS)}")


def choose(name: str, layer: Layer, family: str, space: Any, trials: int) -> str:
    """The sampler for a family's space: by the rule above if `name` is "auto", else `name` itself.

    Raises:
        BadInput: there is no sampler `name`, or the family has no spec for the layer.
    """
    require(name)
    if name != "auto":
        return name
    if trials >= MANY_TRIALS:
        return "nsga2"
    return "gp" if trials <= MOST_GP_TRIALS and _small_and_continuous(layer, family, space) else "tpe"


def _small_and_continuous(layer: Layer, family: str, space: Any) -> bool:
    rng, module = random.Random(0), family_named(family)
    parameters: set[tuple[str, ...]] = set()
    kinds: set[str] = set()
    values: dict[str, set[Any]] = {}
    for _ in range(PROBES):
        trial = RandomTrial(rng)
        module.suggest(trial, layer, space)
        parameters.add(tuple(sorted(trial.params)))
        kinds |= set(trial.kinds.values())
        for key, value in trial.params.items():
            values.setdefault(key, set()).add(value)
    if len(parameters) != 1 or "categorical" in kinds or not 1 <= len(values) <= MOST_GP_PARAMETERS:
        return False
    # Of n uniform draws from k values about n - n^2 / 2k are distinct: two thirds of them only if k > 3 n / 2.
    return "float" in kinds or max(map(len, values.values())) > PROBES * 2 // 3


def make(name: str, seed: int, trials: int) -> optuna.samplers.BaseSampler:
    """A sampler by the name that `choose` returned, for a study of `trials`."""
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
