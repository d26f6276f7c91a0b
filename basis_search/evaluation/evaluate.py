"""Evaluate one candidate: fit it, check its kernels against the reference, time them against torch's linear."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from basis_search.evaluation import fitted_store
from basis_search.evaluation.candidate import Candidate, Evaluation, failed
from basis_search.evaluation.code_version import code_version
from basis_search.evaluation.correctness import BeyondTolerance, checked_kernels
from basis_search.evaluation.device_errors import DeviceLost, PoisonedContext, failure, is_out_of_memory
from basis_search.evaluation.operator_error import held_out_errors
from basis_search.evaluation.samples import KernelCall
from basis_search.evaluation.timing import AUTO, GRAPH, Timing, clock_for, drift, fingerprint, measure, reference_work
from basis_search.families import family as family_named
from basis_search.families.protocol import Params, spec_to_json
from basis_search.layers.layer import Layer

STEADY_SPREAD, MAX_ATTEMPTS = 0.15, 3
"""Interquartile range over median of a latency ratio above which it is measured again, and how often at most."""

Calls = Mapping[str, KernelCall]
"""One call of each kernel, by name."""


@dataclasses.dataclass(frozen=True)
class Conditions:
    """How a candidate is evaluated.

    Attributes:
        threads: CPU threads of the timing.
        seconds: at least this long per kernel.
        timer: returns seconds, see `basis_search.evaluation.timing.measure`.
        twin: the same candidate on a layer of the same kind and device, whose latencies are reused.
        most_error: a fit with a larger error, weighted where the layer has an output metric, is stopped before its
            kernels are checked and timed.
        params_file: where the fitted parameters are written if the evaluation succeeds, see
            `basis_search.evaluation.fitted_store`.
        clock: the latency that counts, "eager", "graph" or "auto", see `basis_search.evaluation.timing.clock_for`.
        fit_on_cpu: repeat a fit on the CPU for which the GPU has too little memory.
    """

    threads: int = 1
    seconds: float = 0.02
    timer: Callable[[], float] = time.perf_counter
    twin: Evaluation | None = None
    most_error: float = math.inf
    params_file: str | Path | None = None
    clock: str = AUTO
    fit_on_cpu: bool = False


class Options(TypedDict, total=False):
    """The fields of `Conditions`, as keywords."""

    threads: int
    seconds: float
    timer: Callable[[], float]
    twin: Evaluation | None
    most_error: float
    params_file: str | Path | None
    clock: str
    fit_on_cpu: bool


def evaluate(layer: Layer, family: str, spec: Any, **options: Unpack[Options]) -> Evaluation:
    """Fits a candidate, checks every kernel that accepts it on the very input that is then timed, and times them.

    Errors of the candidate (a fit that raises, a kernel beyond its tolerance) are returned as `failure`.

    Args:
        layer: with the device and dtype that it runs in.
        family, spec: the candidate.
        options: as in `Conditions`.

    Raises:
        BadInput: an unknown clock, or "graph" for a layer that does not run on CUDA.
        PoisonedContext, DeviceLost: as of `basis_search.evaluation.device_errors.failure`.
    """
    conditions = Conditions(**options)
    clock_for(layer.device, conditions.clock)
    module = family_named(family)

    def fit() -> Params:
        return module.fit(spec, layer.on_device())

    def fit_with_enough_memory() -> Params:
        try:
            return fit()
        except RuntimeError as problem:
            if layer.device.type == "cpu" or not is_out_of_memory(problem):
                raise
            reason = failure(problem)
        print(f"the fit of {family} {spec_to_json(spec)} to {layer.name!r} goes to the CPU: {reason}", file=sys.stderr)
        params = module.fit(spec, layer.to("cpu").on_device())
        return {name: tensor.to(layer.device) for name, tensor in params.items()}

    candidate = Candidate(layer.name, family, spec)
    return evaluate_fit(layer, candidate, fit_with_enough_memory if conditions.fit_on_cpu else fit, conditions)


def evaluate_fit(layer: Layer, candidate: Candidate, fit: Callable[[], Params], conditions: Conditions) -> Evaluation:
    """As `evaluate`, with the parameters that `fit` returns."""
    module, spec = family_named(candidate.family), candidate.spec
    threads, clock = conditions.threads, clock_for(layer.device, conditions.clock)
    twin = None if conditions.twin is None else conditions.twin.timed_by(clock)
    spent: dict[str, float] = {}

    def fails(reason: str, **stage: Any) -> Evaluation:
        return failed(layer, candidate, reason, threads=threads, seconds=spent, **stage)

    try:
        layer = layer.on_device()
        start = time.perf_counter()
        params = fit()
        spent["fit"] = time.perf_counter() - start

        start = time.perf_counter()
        errors = held_out_errors(layer, module, spec, params)
        error = errors.searched
        if error > conditions.most_error:
            limit = f"{conditions.most_error:.3g}, where it is dominated"
            reason = f"its {errors.name} of {error:.3g} after the fit is above {limit}"
            return fails(reason, stopped="fit", rungs={"fit": error})
        x = _batch(layer)  # [batch, in]
        calls, gaps = checked_kernels(layer, module, spec, params, x, threads)
        spent["gate"] = time.perf_counter() - start
        if not math.isfinite(errors.plain):
            return fails("the fitted operator's output is not finite")
        if not calls:
            refusals = "; ".join(f"{k.name}: {k.refuses(spec, layer)}" for k in module.KERNELS[1:])
            return fails(f"no kernel but the reference accepts: {refusals}")

        if twin is not None and _serves(twin, calls):
            found = dataclasses.replace(
                twin, candidate=candidate, error=errors.plain, gap=gaps[twin.kernel], sensitivity=layer.sensitivity,
                layer_hash=layer.content_hash, seconds=spent, calls=layer.calls, code=code_version(),
                weighted_error=errors.weighted, damage=errors.damage(layer),
            )  # fmt: skip
        else:
            start = time.perf_counter()
            timings, circumstances = _steadiest(layer, x, calls, conditions)
            spent["clock"] = time.perf_counter() - start
            best = fastest(timings, calls, clock)
            timing, dense = timings[best], family_named("dense")
            found = Evaluation(
                candidate, errors.plain, gaps[best], best, timing.seconds, timing.ratio, timing.ratio_spread,
                module.cost(spec, layer), dense.cost(dense.Spec(), layer), fingerprint(layer.device, threads),
                layer.sensitivity, layer.content_hash, energy=timing.joules,
                kernels={name: timings[name].ratio for name in calls}, seconds=spent, code=code_version(),
                clock=circumstances, calls=layer.calls, kind=layer.kind, dense_energy=timings["baseline"].joules,
                weighted_error=errors.weighted, damage=errors.damage(layer), **on_cuda(timings, calls, best, clock),
            )  # fmt: skip
    except BeyondTolerance as problem:
        return fails(str(problem))
    except (PoisonedContext, DeviceLost):
        raise
    except Exception as problem:
        if (failed_for := failure(problem)) is None:
            raise
        return fails(failed_for)
    if conditions.params_file is not None:
        fitted_store.write(Path(conditions.params_file), found.key, params)
    return found


def fastest(timings: Mapping[str, Timing], names: Collection[str], clock: str) -> str:
    """The fastest of the named kernels; by graphs, those without one count only if none has one."""
    by_graph = {name: g.ratio for name in names if (g := timings[name].graph) is not None}
    if clock == GRAPH and by_graph:
        return min(by_graph, key=by_graph.__getitem__)
    return min(names, key=lambda name: timings[name].ratio)


def on_cuda(timings: Mapping[str, Timing], names: Collection[str], best: str, clock: str) -> dict[str, Any]:
    """The fields of an `Evaluation` that measurements on a CUDA device add; {} on the CPU."""
    fields: dict[str, Any] = {"host_seconds": timings[best].host_seconds}
    if (graph := timings[best].graph) is not None:
        fields |= {
            "latency_graph": graph.seconds,
            "latency_graph_ratio": graph.ratio,
            "latency_graph_spread": graph.ratio_spread,
            "timed": clock,
        }
    fields["kernels_graph"] = {name: g.ratio for name in names if (g := timings[name].graph) is not None}
    fields["uncaptured"] = {name: timings[name].uncaptured for name in names if timings[name].uncaptured}
    return fields


def _serves(twin: Evaluation, calls: Calls) -> bool:
    """Whether the twin's latencies are of the same kernels, and its kernel is the fastest by the clock that counts."""
    if twin.failure is not None or set(twin.kernels) != set(calls):
        return False
    return twin.timed_kernels[twin.kernel] == min(twin.timed_kernels.values())


def _batch(layer: Layer) -> Tensor:
    """[batch, in] of held-out rows, repeated where there are fewer, on the layer's device and in its dtype."""
    rows = layer.held_out.to(layer.device, layer.dtype)
    return rows.repeat(-(-layer.batch // len(rows)), 1)[: layer.batch].contiguous()


def _steadiest(
    layer: Layer, x: Tensor, calls: Calls, conditions: Conditions
) -> tuple[dict[str, Timing], dict[str, float]]:
    """Timings of the steadiest of up to MAX_ATTEMPTS measurements, and the state of the clock."""
    clock = clock_for(layer.device, conditions.clock)
    weight = layer.weight.to(layer.device, layer.dtype)
    bias = None if layer.bias is None else layer.bias.to(layer.device, layer.dtype)

    def dense(weight: Tensor, bias: Tensor | None) -> Callable[[], Tensor]:
        return lambda: F.linear(x, weight, bias)

    baseline = KernelCall(dense(weight, bias), lambda: dense(weight.clone(), None if bias is None else bias.clone()), x)
    functions = {"baseline": baseline, "reference": reference_work(layer.device), **calls}
    best, least, attempts = None, math.inf, 0
    with torch.inference_mode():
        while attempts < MAX_ATTEMPTS and least > STEADY_SPREAD:
            timings = measure(
                functions, "baseline", device=layer.device, threads=conditions.threads, seconds=conditions.seconds,
                timer=conditions.timer, rivals=calls,
            )  # fmt: skip
            spread = counted(timings[fastest(timings, calls, clock)], clock).ratio_spread
            if best is None or spread < least:
                best, least = timings, spread
            attempts += 1
    assert best is not None
    reference = counted(best["reference"], clock).seconds
    circumstances = {
        "reference": reference,
        "drift": drift(layer.device, conditions.threads, reference),
        "attempts": attempts,
    }
    if layer.device.type == "cuda":
        circumstances["copies"] = best[fastest(best, calls, clock)].copies
    return best, circumstances


def counted(timing: Timing, clock: str) -> Timing:
    """Its eager part, or by graphs where there is one."""
    return timing.graph if clock == GRAPH and timing.graph is not None else timing
