"""From cheap to dear: forecast, fit on few samples, full fit, kernels timed; what is dominated stops on the way.

A candidate of FLOPs f and latency t is dominated once its error is above that of a finished evaluation e of its layer
with flops(e) <= f and latency(e) <= t.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from basis_search.evaluation import constraints
from basis_search.evaluation.evaluate import Candidate, Evaluation, failed
from basis_search.families import family as family_named
from basis_search.families.protocol import spec_to_json
from basis_search.layers.layer import Layer
from basis_search.layers.output_spectrum import shape
from basis_search.study.proposer import Guide
from basis_search.workers.worker import Judge

CAUTION = 2.0
"""A forecast stops a candidate only if it is dominated at so many standard deviations better than expected."""
FEW = 8
"""The few samples are one row of so many; layers with fewer than FEWEST of them skip that rung."""
FEWEST = 256
MARGIN = 2.0
"""By this factor at least a full fit may better one on few samples; more where it was seen to."""


class Rungs:
    """A judge that climbs: it asks another judge only for what a candidate's forecast leaves open.

    Args:
        judge: fits, gates and times.
        guide: of the layer.
        finished: the layer's evaluations so far.
    """

    def __init__(self, judge: Judge, guide: Guide, finished: Callable[[], Collection[Evaluation]]):
        self._judge, self._guide, self._finished = judge, guide, finished
        self._few = _few(guide.layer)

    def __call__(
        self,
        layer: Layer,
        family: str,
        spec: Any,
        *,
        threads: int,
        twin: Evaluation | None = None,
        most_error: float = math.inf,
    ) -> Evaluation:
        candidate = Candidate(layer.name, family, spec)
        finished = self._finished()
        self._guide.forecasts.learn(finished)
        guess = self._guide.guess(family, spec, {})
        expected = self._guide.forecasts.expect(guess)
        seen = {"forecast": guess.forecast.error, "forecast latency": guess.forecast.latency_ratio}

        def finish(e: Evaluation, **rungs: float) -> Evaluation:
            return dataclasses.replace(e, rungs={**seen, **e.rungs, **rungs}, asked=guess.params, spectrum=shape(layer))

        def stop(rung: str, reason: str, **rungs: float) -> Evaluation:
            return finish(failed(layer, candidate, reason, threads=threads, stopped=rung, rungs=rungs))

        beyond = self._beyond(guess.cost)
        if beyond:
            return stop("forecast", beyond)
        flops = math.exp(guess.logs[1])
        latency = expected.latency_ratio * math.exp(-CAUTION * expected.latency_spread)
        bar, by = dominating(finished, flops, latency)
        hoped = expected.error * math.exp(-CAUTION * expected.error_spread)
        if hoped > bar:
            return stop("forecast", f"dominated by {by}: its error is not expected below {hoped:.3g}")
        rungs: dict[str, float] = {}
        few = self._few if family_named(family).FITS_ROWS and math.isfinite(bar) else None
        if few is not None:
            sketch = self._judge(few, family, spec, threads=threads, twin=None, most_error=-1.0)
            if sketch.stopped == "fit":
                rungs["few samples"] = sketch.rungs["fit"]
                if sketch.rungs["fit"] / self._margin(finished) > bar:
                    reason = f"dominated by {by}: its error on few samples is {sketch.rungs['fit']:.3g}"
                    return stop("few samples", reason, **rungs)
        least = min(bar, most_error)
        options = {"most_error": least} if math.isfinite(least) else {}  # a judge in another process is told JSON
        found = self._judge(layer, family, spec, threads=threads, twin=twin, **options)
        return finish(found, **rungs)

    def _beyond(self, cost: Any) -> str | None:
        """Which limit the candidate is beyond, known before any fit."""
        bounds = self._guide.bounds
        dense = family_named("dense")
        for quantity, amount in constraints.excess(bounds, cost, dense.cost(dense.Spec(), self._guide.layer)).items():
            if amount > 0:
                at = bounds[quantity]
                return (
                    f"beyond a limit: {quantity} are {at + amount:.3g} of the dense layer's, but at most {at:g} may be"
                )
        return None

    @staticmethod
    def _margin(finished: Collection[Evaluation]) -> float:
        ratios = [e.rungs["few samples"] / e.error for e in finished if "few samples" in e.rungs and e.error > 0]
        return max([MARGIN, *ratios])


def dominating(finished: Collection[Evaluation], flops: float, latency: float) -> tuple[float, str]:
    """The least error at no more FLOPs and latency, and whose it is; infinite if there is none."""
    below = [e for e in finished if e.failure is None and e.flops_ratio <= flops and e.latency_ratio <= latency]
    best = min(below, key=lambda e: e.error, default=None)
    if best is None:
        return math.inf, ""
    values: Mapping[str, Any] = spec_to_json(best.candidate.spec)
    words = ", ".join(f"{key} {value}" for key, value in values.items())
    return best.error, f"{best.candidate.family} ({words}) with an error of {best.error:.3g}"


def foretold(evaluation: Evaluation, layer: Layer | None = None) -> Evaluation:
    """The same with the latency ratio that was foretold, or is for `layer`, in the measured one's place."""
    latency = evaluation.rungs.get("forecast latency")
    if latency is None and layer is not None:
        latency = family_named(evaluation.candidate.family).forecast(evaluation.candidate.spec, layer).latency_ratio
    if latency is None or evaluation.failure is not None:
        return evaluation
    return dataclasses.replace(evaluation, latency_ratio=latency)


def _few(layer: Layer) -> Layer | None:
    """The layer with every FEW-th row of its inputs, and nothing known of the others."""
    rows = layer.inputs[::FEW]
    return dataclasses.replace(layer, inputs=rows, moment=None) if len(rows) >= FEWEST else None
