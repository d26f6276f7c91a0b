"""Settings of the commands as dataclasses, which hydra fills and `check` validates before any work begins."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from basis_search.errors import BadInput, near_miss
from basis_search.evaluation import constraints as bounds
from basis_search.evaluation.timing import AUTO, clock_for
from basis_search.families import FAMILIES
from basis_search.families import family as family_named
from basis_search.layers.device import known_device, usable_dtype
from basis_search.planning import budget
from basis_search.study import samplers
from basis_search.study.settings import TRIAL_SECONDS

TRACKING = ("off", "offline", "online")


def _default_spaces() -> dict[str, Any]:
    return {name: module.Space() for name, module in FAMILIES.items()}


@dataclass
class SearchConfig:
    """Settings of one worker of a search over captured layers.

    Attributes:
        layers: directory of `Layers.save`.
        run: run folder for the results; several workers share one.
        select: the captured layers to search, exact names or "re:<regular expression>".
        exclude: which of those to leave out.
        leads: number of layers of each kind (rows, features, bias, dtype), the most sensitive ones, that are searched;
            the specs on their fronts are fitted to the others. None searches every layer.
        groups: layers that must share a family and spec in every plan, by patterns such as
            "re:(.*)\\.(?:query|key|value)", one group for each value of the pattern's own groups.
        families: by name.
        trials: distinct specs per layer and family, of all workers together.
        total: distinct specs per layer over all families, which predictions choose; `trials` is then unused.
        sampler: "auto" (predictions, early stopping, and a sampler by rule), or one of "tpe", "gp", "nsga2", "random".
        limits: per layer, quantity -> largest ratio to dense ("flops", "parameters", "bytes", "latency"), or "error".
        warm: folders of earlier runs, whose best specs are tried first on similar layers.
        seed, worker: seed of the run and number of this worker; both seed its samplers.
        reproducible: proposals use predicted latencies, not measured ones, so that one worker repeats its specs.
        threads: CPU threads when latencies are measured.
        device: where the layers run, "cpu", "cuda" or "cuda:1"; "cuda" gives worker N the GPU N modulo their number.
            None means the CPU.
        dtype: in which the layers run, such as "bfloat16"; None keeps the one that they were captured in.
        clock: the latency to minimise: "eager" of plain calls, "graph" of calls replayed from a CUDA graph, "auto" the
            latter on CUDA.
        fit_on_cpu: repeat a fit on the CPU for which the GPU has too little memory, instead of noting a failure.
        storage: optuna's journal file; None puts it into the run folder. A URL (postgresql://, grpc://) is read only
            from the environment variable BASIS_SEARCH_STORAGE.
        cache: a folder of evaluations that runs share; with PostgreSQL, runs share the database instead.
        trial_seconds: an evaluation that takes longer fails.
        trial_memory: an evaluation that needs more GiB fails; None sets no limit.
        budgets: quantity -> fractions of the dense layers' sum, a plan for each.
        max_latency: largest latency of plans for the other quantities, as a fraction of dense; None or inf allows any.
        spaces: family -> bounds of its search space.
        tracking: wandb "off", "offline" or "online".
        export: write the layers of each plan into export/.
        report: write report.html and the plots.
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
    device: str | None = None
    dtype: str | None = None
    clock: str = AUTO
    fit_on_cpu: bool = False
    storage: str | None = None
    cache: str | None = None
    trial_seconds: float = TRIAL_SECONDS
    trial_memory: float | None = None
    budgets: dict[str, list[float]] = field(default_factory=dict)
    max_latency: float | None = budget.DEFAULT_MAX_LATENCY
    spaces: dict[str, Any] = field(default_factory=_default_spaces)
    tracking: str = "off"
    export: bool = True
    report: bool = True

    def check(self) -> None:
        """Raises BadInput for the first wrong value."""
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
        for label, limit in (
            ("trial_seconds", self.trial_seconds),
            ("trial_memory", self.trial_memory),
            ("max_latency", self.max_latency),
        ):
            if limit is not None and not limit > 0:
                raise BadInput(f"{label} is {limit}, but a limit above 0 is needed")
        if self.total is not None and self.total < 1:
            raise BadInput(f"total is {self.total}, but at least 1 is needed, or null for trials of each family")
        if self.leads is not None and self.leads < 1:
            raise BadInput(f"leads is {self.leads}, but at least 1 is needed, or null to search every layer")
        samplers.require(self.sampler)
        if self.device is not None:
            known_device(self.device)  # a machine that only starts workers may have no GPU
        if self.dtype is not None:
            usable_dtype(self.dtype)
        if self.clock != AUTO:
            clock_for(known_device(self.device or "cpu"), self.clock)
        bounds.check(self.limits)
        if self.tracking not in TRACKING:
            raise BadInput(f"there is no tracking {self.tracking!r}{near_miss(self.tracking, TRACKING)}")
        for one in budget.budgets_of(self.budgets):
            budget.check(one)


@dataclass
class DiscoverConfig:
    """Settings of a search for exact schemes.

    Attributes:
        format: n x m x p such as "4x4x4", or "all" for the whole table.
        formats: "all" is the same as format=all.
        method: "walk" over the flip graph, or "numerical": least squares, then rounding to exact coefficients.
        ring: "Z2", "Z" or "ZT" for "walk"; "Q", "Z[1/2]", "Z" or "ZT" for the numerical method.
        rank: stop at this rank; None uses all of the time. The numerical method needs it.
        seconds, seed, workers: wall time, seed, threads.
        symmetry: "Z3" walks over orbits under a.b.c -> b.c.a alone (square formats), "none" never does, "auto" mostly
            does from 5x5x5 on.
        out: directory for the schemes found, which a later search resumes from; None only prints them.
        neighbourhood: number of schemes of the flip graph around the result (for the table: the graph of formats) to
            write into `out` as GraphML and as a picture; 0 for none.
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
    """Settings of a measured table.

    Attributes:
        suite: "stl", "kronecker", "pq", "launch", "schemes", "search" or "model".
        part: one of the suite's parts, or "all".
        device: "cpu" or "cuda".
        threads: CPU threads.
        json: a file that the rows are also written to, each as soon as it is there.
        quick: the few smallest cases of a part, where it has a quick form (those of a GPU have).
        seconds: a part ends after the row in which this time has passed; None has no limit.
    """

    suite: str = ""
    part: str = "all"
    device: str = "cpu"
    threads: int = 1
    json: str | None = None
    quick: bool = False
    seconds: float | None = None


@dataclass
class TuneConfig:
    """Settings of a measurement of the Triton kernels' block sizes.

    Attributes:
        device: a CUDA device, such as "cuda" or "cuda:1".
        suite: whose kernels: "stl", "kronecker", "pq" or "all".
        shapes: "ROWSxINPUTSxOUTPUTS" of the layers, such as "8192x4096x11008"; empty takes those of the benches.
        dtype: "bfloat16", "float16" or "float32".
        gradients: tune the kernels of a training step as well.
        seconds: stop after this time; the same command goes on later. None has no limit.
        out: a tuning file, or a folder for it; None writes where later calls look: the user's cache folder.
    """

    device: str = "cuda"
    suite: str = "all"
    shapes: list[str] = field(default_factory=list)
    dtype: str = "bfloat16"
    gradients: bool = False
    seconds: float | None = None
    out: str | None = None


SCHEMAS: dict[str, type[Any]] = {
    "search": SearchConfig,
    "discover": DiscoverConfig,
    "bench": BenchConfig,
    "tune": TuneConfig,
}
EXPECTED_VALUES = {
    r"Value '(.*)' of type .* could not be converted to Integer": "a whole number",
    r"Value '(.*)' of type .* could not be converted to Float": "a number",
    r"Value '(.*)' .*is not a valid bool": "true or false",
    r"is not a ListConfig, list or tuple": "a list in brackets, such as key=[value]",
    r"Cannot assign \w+ to Dict": "a mapping in braces, such as budgets={flops:[0.5]}",
}
"""Part of omegaconf's message -> what the setting takes."""


def explained(problem: Exception, name: str) -> str:
    """hydra's message in one line: the nearest key for a misspelt one, the wanted type for a wrong one."""
    message = f"{problem}\n{problem.__cause__ or ''}"
    missing = re.search(r"Key '([^']+)' (?:is )?not in", message) or re.search(r"Could not override '([^']+)'", message)
    if missing is not None:
        key = missing.group(1)
        inside = re.search(r"full_key: (\S+)\.[^.\s]+", message)
        known = list(SCHEMAS[name].__dataclass_fields__)
        if inside is not None and inside.group(1) == "budgets":
            known = list(budget.QUANTITIES)
        elif inside is not None and (space := re.fullmatch(r"spaces\.(\w+)", inside.group(1))):
            known = list(family_named(space.group(1)).Space.__dataclass_fields__)
        if key not in known:
            return f"there is no setting {key!r}{near_miss(key, known)}"
    override = re.search(r"Error merging override \+*(.*)", message)
    if override is not None:
        for pattern, wanted in EXPECTED_VALUES.items():
            if found := re.search(pattern, message):
                value = f"{found.group(1)!r} is not" if found.groups() else "it needs"
                return f"{override.group(1)}: {value} {wanted}"
    line = " ".join(line.strip() for line in str(problem).splitlines() if not line.startswith("See http"))
    reason = str(problem.__cause__ or "").split("\n")[0]
    return f"{line}: {reason}" if reason and reason not in line else line
