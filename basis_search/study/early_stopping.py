"""Early stopping in stages of rising cost: prediction, fit on few samples, full fit, timing.

A candidate of FLOPs f and latency t is dominated once its error exceeds that of a finished evaluation e of its layer
with flops(e) <= f and latency(e) <= t. It is then stopped, and recorded with the stage and the reason. Errors are
weighted by the layer's output metric where there is one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from basis_search.evaluation.candidate import Candidate, Evaluation, failed
from basis_search.families import family as family_named
from basis_search.families.protocol import spec_to_json
from basis_search.layers.layer import Layer
from basis_search.layers.output_spectrum import shape
from basis_search.study.proposals import Proposal
from basis_search.study.proposer import Proposer
from basis_search.workers.worker import Evaluator, takes

CONFIDENCE_DEVIATIONS = 2.0
"""Standard deviations by which predicted log error and log latency are lowered to stop a candidate as dominated."""
SAMPLE_DIVISOR, LEAST_SAMPLES = 8, 256
"""The few samples are every SAMPLE_DIVISOR-th row; the stage is skipped where they are fewer than LEAST_SAMPLES."""
LEAST_SAMPLING_ERROR_RATIO = 2.0
"""Assumed ratio of the error of a fit on few samples to that of the full fit; the largest measured one if above."""


class Stages:
    """Evaluates a candidate stage by stage; stops it where it exceeds a limit or is dominated.

    Args:
        evaluate: runs the stages from the fit on.
        proposer: of the layer, with its surrogate and limits.
        history: returns the layer's evaluations so far.
    """

    def __init__(self, evaluate: Evaluator, proposer: Proposer, history: Callable[[], Collection[Evaluation]]):
        self._evaluate, self._proposer, self._history = evaluate, proposer, history
        self._few = _few_samples(proposer.layer)

    def __call__(
        self,
        layer: Layer,
        family: str,
        spec: Any,
        *,
        threads: int,
        twin: Evaluation | None = None,
        most_error: float = math.inf,
        params_file: str | None = None,
        **clock: str,
    ) -> Evaluation:
        """As `evaluate`, with the errors by stage, the spec's parameters and the layer's spectrum recorded as well."""
        surrogate, history = self._proposer.surrogate, self._history()
        surrogate.learn(history)
        proposal = surrogate.include(family, spec, {})
        stages = {"forecast": proposal.forecast.error, "forecast latency": proposal.forecast.latency_ratio}

        def recorded(e: Evaluation) -> Evaluation:
            return dataclasses.replace(e, rungs={**stages, **e.rungs}, asked=proposal.params, spectrum=shape(layer))

        def stopped(stage: str, reason: str) -> Evaluation:
            return recorded(failed(layer, Candidate(layer.name, family, spec), reason, threads=threads, stopped=stage))

        if reason := self._beyond_a_limit(proposal):
            return stopped("forecast", reason)
        prediction = surrogate.predict(proposal)
        latency = prediction.latency_ratio * math.exp(-CONFIDENCE_DEVIATIONS * prediction.latency_deviation)
        bound, dominator = dominating(history, math.exp(proposal.logs[1]), latency)
        least_error = prediction.error * math.exp(-CONFIDENCE_DEVIATIONS * prediction.error_deviation)
        if least_error > bound:
            return stopped("forecast", f"dominated by {dominator}: its predicted error is at least {least_error:.3g}")
        if self._few is not None and family_named(family).FITS_ROWS and math.isfinite(bound):
            sketch = self._evaluate(self._few, family, spec, threads=threads, twin=None, most_error=-1.0, **clock)
            if sketch.stopped == "fit":
                error = stages["few samples"] = sketch.rungs["fit"]
                if error / _sampling_error_ratio(history) > bound:
                    return stopped("few samples", f"dominated by {dominator}: its error on few samples is {error:.3g}")
        bound = min(bound, most_error)
        options: dict[str, Any] = {
            **clock,
            **({"most_error": bound} if math.isfinite(bound) else {}),
        }  # JSON has no infinity
        if params_file is not None and takes(self._evaluate, "params_file"):
            options["params_file"] = params_file
        return recorded(self._evaluate(layer, family, spec, threads=threads, twin=twin, **options))

    def _beyond_a_limit(self, proposal: Proposal) -> str | None:
        """The reason where the candidate's cost exceeds a limit, which is known before any fit."""
        if (excess := self._proposer.excess(proposal)) is None:
            return None
        quantity, ratio = excess
        limit = self._proposer.settings.limits[quantity]
        return f"beyond a limit: {quantity} are {ratio:.3g} of the dense layer's, but at most {limit:g} may be"


def _sampling_error_ratio(history: Collection[Evaluation]) -> float:
    ratios = [
        e.rungs["few samples"] / e.searched_error for e in history if "few samples" in e.rungs and e.searched_error > 0
    ]
    return max([LEAST_SAMPLING_ERROR_RATIO, *ratios])


def dominating(history: Collection[Evaluation], flops: float, latency: float) -> tuple[float, str]:
    """The least error at no more FLOPs and latency, and a description of its candidate; infinite if there is none."""
    below = [e for e in history if e.failure is None and e.flops_ratio <= flops and e.timed_ratio <= latency]
    best = min(below, key=lambda e: e.searched_error, default=None)
    if best is None:
        return math.inf, ""
    values: Mapping[str, Any] = spec_to_json(best.candidate.spec)
    words = ", ".join(f"{key} {value}" for key, value in values.items())
    return best.searched_error, f"{best.candidate.family} ({words}) with an error of {best.searched_error:.3g}"


def _few_samples(layer: Layer) -> Layer | None:
    """The layer with every SAMPLE_DIVISOR-th row of its inputs, and no second moment of the others."""
    rows = layer.inputs[::SAMPLE_DIVISOR]
    return dataclasses.replace(layer, inputs=rows, moment=None) if len(rows) >= LEAST_SAMPLES else None
