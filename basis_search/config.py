"""What the command line takes, typed: hydra fills these, and each checks itself before any work begins."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from basis_search.errors import BadInput, near_miss
from basis_search.evaluation import constraints as bounds
from basis_search.families import FAMILIES
from basis_search.families import family as family_named
from basis_search.planning import budget
from basis_search.study import samplers
from basis_search.study.settings import TRIAL_SECONDS

TRACKING = ("off", "offline", "online")


def _default_spaces() -> dict[str, Any]:
    return {name: module.Space() for name, module in FAMILIES.items()}


@dataclass
class SearchConfig:
    """One worker of a search over captured layers.

    Attributes:
        layers: directory of `Layers.save`.
        run: folder of results; several workers share one.
        select: which of the captured layers, exact names or "re:<regular expression>".
        exclude: which of those not.
        leads: only so many layers of each kind (rows, features, bias, dtype), the most sensitive, are searched; what
            lies on their fronts is fitted to the others. None searches every layer.
        groups: layers that must share a family and spec in every plan, by patterns such as
            "re:(.*)\\.(?:query|key|value)", one group for each value of the pattern's own groups.
        families: by name.
        trials: distinct specs per layer and family, over all workers.
        total: distinct specs per layer over all families, which forecasts choose between; `trials` is then unused.
        sampler: "auto" (forecasts, rungs, and a sampler by rule), or "tpe", "gp", "nsga2" or "random" alone.
        limits: at most so much of the dense layer's "flops", "parameters", "bytes", "latency", or "error", per layer.
        warm: folders of earlier runs, whose best specs are tried first on layers like theirs.
        seed, worker: each worker's samplers are seeded by both.
        reproducible: proposals go by foretold latencies, not by measured ones: one worker finds equal specs again.
        threads: CPU threads of the clock.
        storage: optuna's journal file; None puts it into the run folder. A URL (postgresql://, grpc://) is read from
            the environment variable BASIS_SEARCH_STORAGE alone.
        cache: a folder of evaluations that runs share; with PostgreSQL the database is that.
        trial_seconds: an evaluation that takes longer is a failed one.
        trial_memory: so is one that takes more GiB; None sets no limit.
        budgets: quantity -> fractions of the dense layers' sum, a plan for each; plans are no slower than dense unless
            "latency" holds a number above 1, which is then what plans for the other quantities may take.
        spaces: per family, the bounds of its search.
        tracking: wandb "off", "offline" or "online".
        export: write each plan's layers under export/.
        report: write report.html and its plots.
    """

    layers: str = ""
    run: str = ""
    select: list[str] = field(default_factory=lambda: ["re:.*"])
    exclude: list[str] = field(default_factory=list)
    leads: int | None = None
    groups: list[str] = field(default_factory=list)
    families: list[str] = field(default_factory=lambda: list(FAMILIES))
    trials: int = 16
    total: int | None = None
    sampler: str = "auto"
    limits: dict[str, float] = field(default_factory=dict)
    warm: list[str] = field(default_factory=list)
    seed: int = 0
    worker: int = 0
    reproducible: bool = False
    threads: int = 1
    storage: str | None = None
    cache: str | None = None
    trial_seconds: float = TRIAL_SECONDS
    trial_memory: float | None = None
    budgets: dict[str, list[float]] = field(default_factory=dict)
    spaces: dict[str, Any] = field(default_factory=_default_spaces)
    tracking: str = "off"
    export: bool = True
    report: bool = True

    def check(self) -> None:
        """Raises BadInput with the first thing that is wrong."""
        if not self.layers:
            raise BadInput(
                "no layers are named; add layers=DIR, a directory that basis_search.capture(...).save(DIR) wrote"
            )
        for name in self.families:
            family_named(name)
        if not self.families:
            raise BadInput("families is empty; name at least one of " + ", ".join(FAMILIES))
        for label, value, least in (
            ("trials", self.trials, 1),
            ("worker", self.worker, 0),
            ("threads", self.threads, 1),
        ):
            if value < least:
                raise BadInput(f"{label} is {value}, but at least {least} is needed")
        for label, limit in (("trial_seconds", self.trial_seconds), ("trial_memory", self.trial_memory)):
            if limit is not None and not limit > 0:
                raise BadInput(f"{label} is {limit}, but a limit above 0 is needed")
        if self.total is not None and self.total < 1:
            raise BadInput(f"total is {self.total}, but at least 1 is needed, or null for trials of each family")
        if self.leads is not None and self.leads < 1:
            raise BadInput(f"leads is {self.leads}, but at least 1 is needed, or null to search every layer")
        samplers.require(self.sampler)
        bounds.check(self.limits)
        if self.tracking not in TRACKING:
            raise BadInput(f"there is no tracking {self.tracking!r}{near_miss(self.tracking, TRACKING)}")
        for one in budget.budgets_of(self.budgets):
            budget.check(one)


@dataclass
class DiscoverConfig:
    """A flip-graph search for exact schemes.

    Attributes:
        format: n x m x p such as "4x4x4", or "all" for the whole table.
        formats: "all" is the same as format=all.
        method: "walk" over the flip graph, or "numerical": least squares, then rounding to exact coefficients.
        ring: "Z2", "Z" or "ZT" for a walk; "Q", "Z[1/2]", "Z" or "ZT" for the numerical method.
        rank: stop at this rank; None goes on until the time is over. The numerical method needs it.
        seconds, seed, workers: wall time, seed, threads.
        symmetry: "Z3" walks over orbits under a.b.c -> b.c.a alone (square formats), "none" never does, "auto" mostly
            does from 5x5x5 on.
        out: directory for what is found, from which a later search goes on; None prints only.
        neighbourhood: this many schemes of the flip graph around what was found (for the table: the graph of formats)
            are written into `out` as GraphML and as a picture; 0 for none.
    """

    format: str = "4x4x4"
    formats: str | None = None
    method: str = "walk"
    ring: str = "Z2"
    rank: int | None = None
    seconds: float = 60.0
    seed: int = 0
    workers: int = 1
    symmetry: str = "auto"
    out: str | None = None
    neighbourhood: int = 0


@dataclass
class BenchConfig:
    """A measured table.

    Attributes:
        suite: "stl", "kronecker", "pq", "schemes" or "search".
        part: one of the suite's parts, or "all".
        device: "cpu" or "cuda".
        threads: CPU threads.
        json: a file to write the rows to as well.
    """

    suite: str = ""
    part: str = "all"
    device: str = "cpu"
    threads: int = 1
    json: str | None = None
