"""Settings of a search, the same for every layer and worker: search spaces, trials, sampler, seed, limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from basis_search.errors import BadInput
from basis_search.evaluation import constraints
from basis_search.evaluation.candidate import Evaluation
from basis_search.families import family as family_named
from basis_search.study import samplers
from basis_search.study.proposals import POOL_SIZE

if TYPE_CHECKING:
    from basis_search.study.optuna_storage import Location

TRIAL_SECONDS = 600.0
"""Time limit of one evaluation in a child process, unless set otherwise."""
LEAST_POOL, POOL_PER_TRIAL = 100, 12
"""Specs drawn of each family: so many per trial, at least LEAST_POOL and at most POOL_SIZE."""


@dataclass(frozen=True)
class SearchSettings:
    """What `search` is asked for, checked.

    Attributes:
        spaces: search space of each family, in the order in which families are searched.
        trials: distinct specs per layer and family, over all workers.
        total: distinct specs per layer over all families; then `trials` is unused.
        seed: of samplers and of the pool of specs; each worker's is derived from it.
        sampler: "auto", "tpe", "gp", "nsga2" or "random".
        limits: upper bounds, as ratios to the dense layer; see `basis_search.evaluation.constraints`.
        warm: evaluations of earlier runs.
        reproducible: proposals and early stopping use predicted latencies, not measured ones.
        storage: of optuna's studies; None keeps them in memory.

    Raises:
        BadInput: a number of trials below 1, an unknown sampler or limit.
    """

    spaces: Mapping[str, Any]
    trials: int = 16
    total: int | None = None
    seed: int = 0
    sampler: str = "auto"
    limits: Mapping[str, float] = field(default_factory=dict)
    warm: tuple[Evaluation, ...] = ()
    reproducible: bool = False
    storage: Location | None = None

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise BadInput(f"trials is {self.trials}, but at least 1 is needed")
        if self.total is not None and self.total < 1:
            raise BadInput(f"total is {self.total}, but at least 1 is needed")
        constraints.check(self.limits)
        samplers.require(self.sampler)

    @property
    def predicts(self) -> bool:
        """Whether predictions propose specs and stop candidates early, and not a sampler alone."""
        return self.sampler == "auto"

    @property
    def budget(self) -> int:
        """Trials that a proposer or sampler plans for: of all families together, or of each."""
        return self.total or self.trials

    @property
    def pool_size(self) -> int:
        """Specs drawn of each family for the proposer; 0 where a sampler proposes alone."""
        return min(POOL_SIZE, max(LEAST_POOL, POOL_PER_TRIAL * self.budget)) if self.predicts else 0


def spaces_of(families: Iterable[str], spaces: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The search space of each family: the given one, or the family's default.

    Raises:
        BadInput: there is no family of that name.
    """
    defaults = {name: family_named(name).Space() for name in families}
    return {name: (spaces or {}).get(name, default) for name, default in defaults.items()}
