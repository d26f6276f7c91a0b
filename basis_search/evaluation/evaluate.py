"""One candidate judged: fitted, its kernels held against the reference, then against the clock."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from basis_search.errors import BadInput
from basis_search.evaluation import fitted_store
from basis_search.evaluation.code_version import code_version
from basis_search.evaluation.correctness import BeyondTolerance, gated
from basis_search.evaluation.timing import (
    Device,
    Timing,
    drift,
    fingerprint,
    measure,
    reference_work,
)
from basis_search.families import family as family_named
from basis_search.families.protocol import (
    Cost,
    Params,
    spec_from_json,
    spec_hash,
    spec_to_json,
)
from basis_search.layers.layer import Layer

SCHEMA_VERSION = 1
STEADY, ATTEMPTS = 0.15, 3
"""Interquartile range over median of a latency ratio above which it is measured again, and how often at most."""


@dataclass(frozen=True)
class Candidate:
    """A structure for one layer: what a search proposes."""

    layer: str
    family: str
    spec: Any

    @property
    def hash(self) -> str:
        """Of family and spec, canonical."""
        return spec_hash(self.family, self.spec)


@dataclass(frozen=True)
class Evaluation:
    """What was measured of one candidate.

    Attributes:
        candidate: what was judged.
        error: ||Y - Y'||^2 / ||Y||^2 on held-out inputs, Y = X W^T without the bias; the thing traded.
        gap: ||Y'_kernel - Y'_reference|| / ||Y'_reference||; a bug if above rounding.
        kernel: the fastest kernel, the one that `latency` is of.
        latency: seconds per call of the layer's batch, with `latency_ratio` to torch's dense linear timed in
            the same run, alternating, and the spread of that ratio.
        kernels: latency ratio of each kernel that ran, by few samples for those far behind the fastest.
        energy: joules per call where the device tells it.
        cost, dense_cost: analytic, per call.
        device: what the latency was measured on.
        sensitivity: the layer's; loss of the model per unit of error.
        layer_hash: content of the layer it was fitted to.
        failure: why there is no result; then the numbers are infinite.
        stopped: the rung ("forecast", "few samples", "fit") at which the search gave it up as dominated or beyond a
            limit; `failure` says by what. Empty for all that went to the end, or failed.
        rungs: errors on the way there, by rung, and "forecast latency", a ratio; as they were before corrections.
        asked: the parameters by which the search space makes the spec.
        spectrum: of the layer's outputs, `basis_search.layers.output_spectrum.shape`.
        seconds: wall time spent on "fit", "gate" and "clock".
        calls: of the layer in one forward pass of the model.
        kind: of the layer, as `Layer.kind`.
        dense_energy: joules per call of the dense layer, timed beside it, where the device tells it.
        code: `code_version()` of what judged it.
        clock: of the measurement: "reference", seconds of a fixed matrix product timed beside it, "drift", its
            slowness against the fastest that this process has seen, and "attempts", how often it was measured.
    """

    candidate: Candidate
    error: float
    gap: float
    kernel: str
    latency: float
    latency_ratio: float
    latency_spread: float
    cost: Cost
    dense_cost: Cost
    device: Device
    sensitivity: float
    layer_hash: str
    energy: float | None = None
    failure: str | None = None
    kernels: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    calls: int = 1
    kind: str = ""
    dense_energy: float | None = None
    code: str = ""
    clock: Mapping[str, float] = field(default_factory=dict)
    stopped: str = ""
    rungs: Mapping[str, float] = field(default_factory=dict)
    asked: Mapping[str, Any] = field(default_factory=dict)
    spectrum: tuple[float, ...] = ()

    @cached_property
    def key(self) -> str:
        """What an evaluation is found by: layer content, candidate, device and code."""
        return evaluation_key(self.layer_hash, self.candidate, self.device, self.code)

    @property
    def flops_ratio(self) -> float:
        """FLOPs over the dense layer's."""
        return self.cost.flops / self.dense_cost.flops

    @property
    def objectives(self) -> tuple[float, float, float]:
        """What a search minimises: error, FLOPs ratio, latency ratio."""
        return self.error, self.flops_ratio, self.latency_ratio

    def to_json(self) -> dict[str, Any]:
        """JSON values; infinite numbers become null."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data["candidate"] = {
            "layer": self.candidate.layer,
            "family": self.candidate.family,
            "spec": spec_to_json(self.candidate.spec),
            "hash": self.candidate.hash,
        }
        for name in ("cost", "dense_cost", "device"):
            data[name] = dataclasses.asdict(data[name])
        for name in ("error", "gap", "latency", "latency_ratio", "latency_spread"):
            data[name] = data[name] if math.isfinite(data[name]) else None
        for name in ("kernels", "seconds", "clock", "rungs", "asked"):
            data[name] = dict(data[name])
        return {"schema_version": SCHEMA_VERSION, **data}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluation:
        """What `to_json` wrote.

        Raises:
            BadInput: it was not ours, or written by a newer version.
        """
        version = data.get("schema_version") if isinstance(data, Mapping) else None
        if not isinstance(version, int):
            raise BadInput("this is no evaluation of basis_search: it has no schema_version")
        if version > SCHEMA_VERSION:
            raise BadInput(
                f"this evaluation has schema version {version}, but this basis_search reads up to {SCHEMA_VERSION}; "
                "install a newer basis_search"
            )
        known = {f.name for f in dataclasses.fields(cls)}
        values = {key: value for key, value in data.items() if key in known}
        try:
            stored = values["candidate"]
            spec = spec_from_json(family_named(stored["family"]), stored["spec"])
            values["candidate"] = Candidate(stored["layer"], stored["family"], spec)
            values["cost"], values["dense_cost"] = Cost(**values["cost"]), Cost(**values["dense_cost"])
            values["device"] = Device(**values["device"])
            for name in ("error", "gap", "latency", "latency_ratio", "latency_spread"):
                values[name] = math.inf if values[name] is None else float(values[name])
            values["spectrum"] = tuple(values.get("spectrum", ()))
            return cls(**values)
        except (KeyError, TypeError) as problem:
            raise BadInput(f"this is no evaluation of basis_search: {problem!r}") from problem


def evaluation_key(layer_hash: str, candidate: Candidate, device: Device, code: str) -> str:
    """sha256 of what decides an evaluation's outcome; a latency holds for one device alone."""
    parts = [layer_hash, candidate.hash, *dataclasses.astuple(device), code]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def operator_error(layer: Layer, y: Tensor) -> float:
    """||Y - Y'||^2 / ||Y||^2 on the held-out rows for y = Y' + bias [held_out, out], in float64."""
    exact = layer.held_out.double() @ layer.weight.double().T  # [held_out, out]
    approximate = y.double() if layer.bias is None else y.double() - layer.bias.double()
    scale = float(exact.square().sum())
    difference = float((approximate - exact).square().sum())
    if math.isnan(difference):
        return math.inf
    return difference / scale if scale > 0 else difference


def evaluate(
    layer: Layer,
    family: str,
    spec: Any,
    *,
    threads: int = 1,
    seconds: float = 0.02,
    params: Params | None = None,
    twin: Evaluation | None = None,
    most_error: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
    params_file: str | Path | None = None,
) -> Evaluation:
    """Fits, gates every kernel that accepts on the very input that is then timed, and times against torch's linear.

    Args:
        layer: on the device and in the dtype that it runs in.
        family, spec: the candidate.
        threads: CPU threads of the clock.
        seconds: at least this long per kernel.
        params: already fitted ones; fitted here if None.
        twin: the same candidate on a layer of the same kind and device: its latencies are taken over.
        most_error: a fit with a larger error is stopped before its kernels are gated and timed.
        clock: what tells seconds, see `basis_search.evaluation.timing.measure`.
        params_file: where the fitted parameters are written if the evaluation succeeds, see
            `basis_search.evaluation.fitted_store`.

    What the candidate does wrong (a fit that raises, a kernel beyond its tolerance) is returned as `failure`.
    """
    module, candidate = family_named(family), Candidate(layer.name, family, spec)
    spent: dict[str, float] = {}
    dense_cost = family_named("dense").cost(family_named("dense").Spec(), layer)
    cost = module.cost(spec, layer)
    device = fingerprint(layer.device, threads)

    def fails(reason: str) -> Evaluation:
        return failed(layer, candidate, reason, threads=threads, seconds=spent)

    try:
        start = time.perf_counter()
        if params is None:
            params = module.fit(spec, layer)
        spent["fit"] = time.perf_counter() - start

        start = time.perf_counter()
        x = _rows(layer)  # [batch, in]
        reference = module.KERNELS[0]
        with torch.no_grad():
            held_out = layer.held_out.to(layer.device, layer.dtype)
            error = operator_error(layer, reference.run(spec, reference.pack(spec, params), held_out.double()))
            if error > most_error:
                reason = f"its error of {error:.3g} after the fit is above {most_error:.3g}, where it is dominated"
                return failed(
                    layer, candidate, reason, threads=threads, seconds=spent, stopped="fit", rungs={"fit": error}
                )
            calls, gaps = gated(layer, module, spec, params, x, threads)
        spent["gate"] = time.perf_counter() - start
        if not math.isfinite(error):
            return fails("the fitted operator's output is not finite")
        if not calls:
            return fails(
                "no kernel but the reference accepts: "
                + "; ".join(f"{k.name}: {k.refuses(spec, layer)}" for k in module.KERNELS[1:])
            )
        if twin is not None and twin.failure is None and set(twin.kernels) == set(calls):
            found = dataclasses.replace(
                twin, candidate=candidate, error=error, gap=gaps[twin.kernel], sensitivity=layer.sensitivity,
                layer_hash=layer.content_hash, seconds=spent, calls=layer.calls, code=code_version(),
            )  # fmt: skip
            return _written(found, params, params_file)
        start = time.perf_counter()
        timings, circumstances = _clock(layer, x, calls, threads, seconds, clock)
        spent["clock"] = time.perf_counter() - start
    except BeyondTolerance as problem:
        return fails(str(problem))
    except (BadInput, ValueError, RuntimeError, ArithmeticError) as problem:
        return fails(f"{type(problem).__name__}: {problem}")
    best = min(calls, key=lambda name: timings[name].ratio)
    found = Evaluation(
        candidate, error, gaps[best], best, timings[best].seconds, timings[best].ratio, timings[best].ratio_spread,
        cost, dense_cost, device, layer.sensitivity, layer.content_hash, energy=timings[best].joules,
        kernels={name: timings[name].ratio for name in calls}, seconds=spent, code=code_version(),
        clock=circumstances, calls=layer.calls, kind=layer.kind, dense_energy=timings["baseline"].joules,
    )  # fmt: skip
    return _written(found, params, params_file)


def _written(evaluation: Evaluation, params: Params, path: str | Path | None) -> Evaluation:
    if path is not None:
        fitted_store.write(Path(path), evaluation.key, params)
    return evaluation


def failed(
    layer: Layer,
    candidate: Candidate,
    reason: str,
    *,
    threads: int = 1,
    seconds: Mapping[str, float] | None = None,
    stopped: str = "",
    rungs: Mapping[str, float] | None = None,
) -> Evaluation:
    """The evaluation of a candidate of which there is nothing but a reason to say, or which was stopped at a rung."""
    dense = family_named("dense")
    return Evaluation(
        candidate, math.inf, math.inf, "", math.inf, math.inf, math.inf,
        family_named(candidate.family).cost(candidate.spec, layer), dense.cost(dense.Spec(), layer),
        fingerprint(layer.device, threads), layer.sensitivity, layer.content_hash, failure=reason,
        seconds=seconds or {}, code=code_version(), stopped=stopped, rungs=rungs or {},
    )  # fmt: skip


def _rows(layer: Layer) -> Tensor:
    """[batch, in] of held-out rows, repeated where there are fewer, as the layer sees them."""
    rows = layer.held_out.to(layer.device, layer.dtype)
    return rows.repeat(-(-layer.batch // len(rows)), 1)[: layer.batch].contiguous()


def _clock(
    layer: Layer, x: Tensor, calls: Mapping[str, Any], threads: int, seconds: float, clock: Callable[[], float]
) -> tuple[dict[str, Timing], dict[str, float]]:
    """Timings of the steadiest of up to ATTEMPTS measurements, and what the clock itself says."""
    weight = layer.weight.to(layer.device, layer.dtype)
    bias = None if layer.bias is None else layer.bias.to(layer.device, layer.dtype)
    functions = {"baseline": lambda: F.linear(x, weight, bias), "reference": reference_work(layer.device), **calls}
    best, least, attempts = None, math.inf, 0
    with torch.inference_mode():
        while attempts < ATTEMPTS and least > STEADY:
            timings = measure(
                functions, "baseline", device=layer.device, threads=threads, seconds=seconds, clock=clock, rivals=calls
            )
            spread = min((timings[name] for name in calls), key=lambda timing: timing.ratio).ratio_spread
            if best is None or spread < least:
                best, least = timings, spread
            attempts += 1
    assert best is not None
    reference = best["reference"].seconds
    return best, {"reference": reference, "drift": drift(layer.device, threads, reference), "attempts": attempts}
