"""One worker of a search: evaluates candidates that no other worker has evaluated or holds a lease on."""

from __future__ import annotations

import dataclasses
import inspect
import math
import sys
import time
from collections.abc import Callable, Collection
from typing import Any, Protocol

from basis_search.evaluation.candidate import Candidate, Evaluation, evaluation_key, failed
from basis_search.evaluation.code_version import code_version
from basis_search.evaluation.evaluate import evaluate
from basis_search.evaluation.fitted_store import FittedStore
from basis_search.evaluation.pareto import ParetoFront
from basis_search.evaluation.shared_latency import twin_of
from basis_search.evaluation.timing import AUTO, clock_for, fingerprint
from basis_search.families import family as family_named
from basis_search.families.protocol import spec_from_json, spec_to_json
from basis_search.layers.layer import Layer
from basis_search.workers.evaluation_log import Record
from basis_search.workers.leases import MAX_DEATHS, Lease

Watcher = Callable[[Evaluation], None]
PAUSE = 0.2
"""Seconds between looks at the other workers' leases."""


class Evaluator(Protocol):
    """Evaluates a candidate: `evaluate`, or a child process that calls it."""

    def __call__(
        self,
        layer: Layer,
        family: str,
        spec: Any,
        *,
        threads: int,
        twin: Evaluation | None = None,
        most_error: float = math.inf,
    ) -> Evaluation: ...


def takes(evaluator: Evaluator, option: str) -> bool:
    """Whether it accepts `params_file`, where it writes the fitted parameters, or `clock`, which the protocol lacks."""
    parameters = inspect.signature(evaluator).parameters
    return option in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


@dataclasses.dataclass
class Worker:
    """Looks candidates up, leases and evaluates them, and logs the result, in that order.

    Attributes:
        record: the evaluation log, shared with the other workers.
        number: this worker's.
        threads: CPU threads of the timing.
        evaluator: evaluates a candidate.
        watch: called after each new evaluation.
        beyond_fronts: store the fitted parameters of every successful evaluation, not of the layers' fronts alone.
        clock: the latency that counts, "eager", "graph" or "auto", as of `evaluate`.
    """

    record: Record
    number: int = 0
    threads: int = 1
    evaluator: Evaluator = evaluate
    watch: Watcher | None = None
    beyond_fronts: bool = False
    clock: str = AUTO

    def clock_of(self, layer: Layer) -> str:
        """ "eager" or "graph": the latency that counts on the layer.

        Raises:
            BadInput: an unknown clock, or "graph" for a layer that does not run on CUDA.
        """
        return clock_for(layer.device, self.clock)

    def evaluations_of(self, layer: Layer) -> list[Evaluation]:
        """Those in the record with this worker's device and code, by its clock whichever they were searched by."""
        device = fingerprint(layer.device, self.threads)
        return self._by_clock(layer, self.record.of(layer.content_hash, device=device, code=code_version()))

    def _by_clock(self, layer: Layer, evaluations: list[Evaluation]) -> list[Evaluation]:
        clock = self.clock_of(layer)
        return [evaluation.timed_by(clock) for evaluation in evaluations]

    def known(self, layer: Layer, family: str) -> list[Evaluation]:
        """All evaluations with this worker's device and code, the other workers' latest included."""
        self.record.refresh()
        device = fingerprint(layer.device, self.threads)
        return self._by_clock(layer, self.record.of(layer.content_hash, family, device, code_version()))

    def leased_by_others(self, layer: Layer, family: str) -> int:
        """How many candidates the other workers are evaluating."""
        return len(self.record.leases.held_by_others(layer.content_hash, family))

    def look_up(self, layer: Layer, candidate: Candidate, trial: int | None) -> Evaluation | None:
        """The candidate's evaluation in the log, or in the cache, from which it is added to the log."""
        key = self._key(layer, candidate)
        if (known := self.record.get(key)) is not None:
            return known.timed_by(self.clock_of(layer))
        if (elsewhere := self.record.cached(key, layer.content_hash)) is None:
            return None
        # The sensitivity is no part of the layer's content: this run's holds.
        known = dataclasses.replace(elsewhere, candidate=candidate, sensitivity=layer.sensitivity)
        known = known.timed_by(self.clock_of(layer))
        now = time.time()
        known = self._keep(known, trial=trial, started=now, finished=now, cached=True)
        fitted, cached = self.record.fitted, self.record.cached_fitted
        if fitted is not None and cached is not None and cached.copy(key, fitted.draft(key)):
            self._store(fitted, layer, known)
        return known

    def evaluate(
        self, layer: Layer, candidate: Candidate, trial: int | None, wanted: tuple[Collection[str], int] | None = None
    ) -> Evaluation | None:
        """The candidate's evaluation, on disk; None where another worker holds a lease on it.

        Args:
            layer, candidate: what to evaluate.
            trial: optuna's number of it.
            wanted: families, and how many of their candidates; also None where others complete that number.
        """
        key = self._key(layer, candidate)
        lease = Lease(layer.content_hash, candidate.family, spec_to_json(candidate.spec), trial)
        families, goal = wanted or ((candidate.family,), math.inf)
        leased = self.record.leases.acquire(key, lease, families)
        if leased is None:
            return None
        # Evaluations that others finished before this lease are in the log by now; `leased` counts the unfinished.
        done = sum(len(self.known(layer, name)) for name in families)
        known = self.record.get(key)  # another worker may have finished it between the look-up and the lease
        if known is None and done + leased < goal:
            known = self._evaluate_and_log(layer, candidate, lease)
        self.record.leases.release(key)
        return None if known is None else known.timed_by(self.clock_of(layer))

    def take_over(self, layer: Layer, family: str) -> tuple[int | None, Evaluation] | None:
        """The trial and evaluation of a candidate that a dead worker had leased; None if there is none."""
        taken = self.record.leases.take_over(layer.content_hash, family)
        if taken is None:
            return None
        key, lease = taken
        self.record.refresh()
        known = self.record.get(key)  # it may have died between logging it and ending its lease
        if known is None:
            spec = spec_from_json(family_named(family), lease.spec)
            known = self._evaluate_and_log(layer, Candidate(layer.name, family, spec), lease)
        self.record.leases.release(key)
        return lease.trial, known.timed_by(self.clock_of(layer))

    def _evaluate_and_log(self, layer: Layer, candidate: Candidate, lease: Lease) -> Evaluation:
        started, clock = time.time(), time.monotonic()
        if lease.deaths < MAX_DEATHS:
            twin = twin_of(self.record, layer, candidate, self.threads)
            options: dict[str, Any] = {"threads": self.threads, "twin": twin}
            if self.clock != AUTO:
                options["clock"] = self.clock
            if self.record.fitted is not None and takes(self.evaluator, "params_file"):
                options["params_file"] = str(self.record.fitted.draft(self._key(layer, candidate)))
            found = self.evaluator(layer, candidate.family, candidate.spec, **options)
        else:
            reason = f"set aside: {lease.deaths} workers died while they evaluated it"
            found = failed(layer, candidate, reason, threads=self.threads)
            print(f"{candidate.family} {spec_to_json(candidate.spec)} of {layer.name} is {reason}", file=sys.stderr)
        finished = started + time.monotonic() - clock  # the wall clock may have been set meanwhile
        known = self._keep(found, trial=lease.trial, started=started, finished=finished)
        if self.record.fitted is not None:
            self._store(self.record.fitted, layer, known)
        return known

    def _store(self, fitted: FittedStore, layer: Layer, evaluation: Evaluation) -> None:
        """Stores the evaluation's draft if it is wanted; removes what has left the layer's front."""
        key = evaluation.key
        known = self.evaluations_of(layer)
        front = {e.key for e in ParetoFront.of(known).evaluations}
        if key in front and not self.beyond_fronts:
            fitted.remove({e.key for e in known} - front)
        if key in front or self.beyond_fronts:
            fitted.store(key, self._fronts)
            fitted.offer_stored([evaluation])
            cached = self.record.cached_fitted
            if cached is not None and not cached.path(key).is_file() and fitted.copy(key, cached.draft(key)):
                cached.store(key, tuple)
        else:
            fitted.discard(key)

    def _fronts(self) -> set[str]:
        """Keys of the evaluations on any layer's front."""
        layers: dict[Any, list[Evaluation]] = {}
        for e in self.record:
            layers.setdefault((e.layer_hash, e.device, e.code), []).append(e)
        return {e.key for found in layers.values() for e in ParetoFront.of(found).evaluations}

    def _keep(self, evaluation: Evaluation, **facts: Any) -> Evaluation:
        if self.record.add(evaluation, worker=self.number, **facts):
            if self.watch is not None:
                self.watch(evaluation)
            return evaluation
        return self.record.get(evaluation.key) or evaluation

    def _key(self, layer: Layer, candidate: Candidate) -> str:
        return evaluation_key(layer.content_hash, candidate, fingerprint(layer.device, self.threads), code_version())
