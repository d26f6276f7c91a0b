"""A candidate, a structure for one layer, and its evaluation."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from basis_search.errors import BadInput
from basis_search.evaluation.code_version import code_version
from basis_search.evaluation.timing import EAGER, GRAPH, Device, fingerprint
from basis_search.families import family as family_named
from basis_search.families.protocol import Cost, spec_from_json, spec_hash, spec_to_json
from basis_search.layers.layer import Layer

SCHEMA_VERSION = 1
"""Of an evaluation's JSON."""
GRAPH_NUMBERS = ("latency_graph", "latency_graph_ratio", "latency_graph_spread")
"""What an evaluation has if its kernel was replayed from a CUDA graph."""


@dataclass(frozen=True)
class Candidate:
    """A structure for one layer: what a search proposes."""

    layer: str
    family: str
    spec: Any

    @property
    def hash(self) -> str:
        """Canonical hash of family and spec."""
        return spec_hash(self.family, self.spec)


@dataclass(frozen=True)
class Evaluation:
    """The measurements of one candidate.

    Attributes:
        candidate: what was evaluated.
        error: ||Y - Y'||^2 / ||Y||^2 on held-out inputs, Y = X W^T without the bias.
        gap: ||Y'_kernel - Y'_reference|| / ||Y'_reference||; above rounding it is a bug.
        kernel: the fastest kernel by `timed`, which both latencies are of.
        latency: seconds per eager call of the layer's batch, with `latency_ratio` to torch's dense linear timed in
            the same run, alternating, and the spread of that ratio.
        kernels: eager latency ratio of each kernel that ran, by few samples for those far behind the fastest.
        energy: joules per call on devices that count it.
        cost, dense_cost: analytic, per call.
        device: what the latency was measured on.
        sensitivity: the layer's; loss of the model per unit of error.
        layer_hash: content of the layer it was fitted to.
        failure: the reason for having no result; then the numbers are infinite.
        stopped: the stage ("forecast", "few samples", "fit") at which the search stopped it as dominated or beyond a
            limit, with the reason in `failure`. Empty for all others.
        rungs: errors by stage, and "forecast latency", a ratio; as predicted, before corrections.
        asked: the search space's parameters that make the spec.
        spectrum: of the layer's outputs, `basis_search.layers.output_spectrum.shape`.
        seconds: wall time of the "fit", the correctness check ("gate") and the timing ("clock").
        calls: of the layer in one forward pass of the model.
        kind: of the layer, as `Layer.kind`.
        dense_energy: joules per call of the dense layer, timed in the same run, on devices that count it.
        code: `code_version()` of the evaluation.
        clock: "reference", seconds of a fixed matrix product timed in the same run, "drift", its ratio to the fastest
            in this process, "attempts", the number of measurements, and on CUDA "copies", the sets of weights that the
            calls of the kernel used in turn.
        latency_graph: seconds per call replayed from a CUDA graph, with `latency_graph_ratio` to the dense linear
            replayed likewise, and the spread of that ratio; None where no graph was captured.
        kernels_graph: as `kernels`, of the kernels that were captured.
        host_seconds: time that the host takes to launch one eager call; None on the CPU.
        timed: "eager" or "graph", the latency that `objectives`, limits and plans use.
        uncaptured: kernels that no CUDA graph could be captured of, with the reason.
        weighted_error: sum over held-out rows of e^T G e over that of y^T G y, e = y - y' and G the layer's output
            metric; None without one, and 0 where the model's output does not depend on the layer.
        damage: weighted_error tr(G W S W^T): the predicted squared change of the model's output per example, which
            adds up over layers; None without an output metric.
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
    latency_graph: float | None = None
    latency_graph_ratio: float | None = None
    latency_graph_spread: float | None = None
    kernels_graph: Mapping[str, float] = field(default_factory=dict)
    host_seconds: float | None = None
    timed: str = EAGER
    uncaptured: Mapping[str, str] = field(default_factory=dict)
    weighted_error: float | None = None
    damage: float | None = None

    @cached_property
    def key(self) -> str:
        """The evaluation's key, from layer content, candidate, device and code."""
        return evaluation_key(self.layer_hash, self.candidate, self.device, self.code)

    @property
    def flops_ratio(self) -> float:
        """FLOPs over the dense layer's."""
        return self.cost.flops / self.dense_cost.flops

    @property
    def objectives(self) -> tuple[float, float, float]:
        """The quantities that a search minimises: `searched_error`, FLOPs ratio, latency ratio as `timed`."""
        return self.searched_error, self.flops_ratio, self.timed_ratio

    @property
    def searched_error(self) -> float:
        """The error that a search minimises: the weighted one where the layer has an output metric."""
        return self.error if self.weighted_error is None else self.weighted_error

    @property
    def timed_latency(self) -> float:
        """Seconds per call by the clock that counts, `timed`."""
        return self.latency_graph if self._by_graph and self.latency_graph is not None else self.latency

    @property
    def timed_ratio(self) -> float:
        """`timed_latency` over the dense layer's, timed alike."""
        return (
            self.latency_graph_ratio if self._by_graph and self.latency_graph_ratio is not None else self.latency_ratio
        )

    @property
    def timed_spread(self) -> float:
        """Interquartile range over median of `timed_ratio`."""
        return (
            self.latency_graph_spread
            if self._by_graph and self.latency_graph_spread is not None
            else self.latency_spread
        )

    @property
    def timed_kernels(self) -> Mapping[str, float]:
        """Latency ratio of each kernel by the clock that counts."""
        return self.kernels_graph if self._by_graph else self.kernels

    @property
    def host_share(self) -> float | None:
        """The part of an eager call's latency that replaying it from a CUDA graph saves; None without a graph."""
        if self.latency_graph is None or not 0 < self.latency < math.inf:
            return None
        return max(0.0, 1 - self.latency_graph / self.latency)

    @property
    def _by_graph(self) -> bool:
        return self.timed == GRAPH

    def timed_by(self, clock: str) -> Evaluation:
        """The same measurements with `clock`, "eager" or "graph", as the one that counts; eager where no graph is."""
        counts = GRAPH if clock == GRAPH and self.latency_graph is not None else EAGER
        return self if counts == self.timed else dataclasses.replace(self, timed=counts)

    def with_ratio(self, ratio: float) -> Evaluation:
        """The evaluation with another value of `timed_ratio`."""
        if self._by_graph:
            return dataclasses.replace(self, latency_graph_ratio=ratio)
        return dataclasses.replace(self, latency_ratio=ratio)

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
        for name in ("kernels", "seconds", "clock", "rungs", "asked", "kernels_graph", "uncaptured"):
            data[name] = dict(data[name])
        return {"schema_version": SCHEMA_VERSION, **data}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluation:
        """The evaluation that `to_json` wrote.

        Raises:
            BadInput: it is no evaluation, or of a newer version.
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
            for name in ("weighted_error", "damage"):
                if values.get(name) is not None:
                    values[name] = float(values[name])
            _check_clock(values)
            return cls(**values)
        except BadInput:
            raise
        except (KeyError, TypeError, ValueError, OverflowError) as problem:
            raise BadInput(f"this is no evaluation of basis_search: {problem!r}") from problem


def _check_clock(values: Mapping[str, Any]) -> None:
    """Raises ValueError for a graph's latency that is no number, and for a `timed` that no latency is of."""
    for name in GRAPH_NUMBERS:
        if values.get(name) is not None:
            float(values[name])
    timed = values.get("timed", EAGER)
    if timed not in (EAGER, GRAPH) or (timed == GRAPH and None in [values.get(name) for name in GRAPH_NUMBERS]):
        raise ValueError(f"timed is {timed!r}, but it has no such latency")


def evaluation_key(layer_hash: str, candidate: Candidate, device: Device, code: str) -> str:
    """sha256 of all that decides an evaluation's outcome; a latency holds for one device alone."""
    parts = [layer_hash, candidate.hash, *dataclasses.astuple(device), code]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


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
    """The evaluation of a candidate that failed for that reason, or was stopped at a stage."""
    dense = family_named("dense")
    return Evaluation(
        candidate, math.inf, math.inf, "", math.inf, math.inf, math.inf,
        family_named(candidate.family).cost(candidate.spec, layer), dense.cost(dense.Spec(), layer),
        fingerprint(layer.device, threads), layer.sensitivity, layer.content_hash, failure=reason,
        seconds=seconds or {}, code=code_version(), stopped=stopped, rungs=rungs or {},
    )  # fmt: skip
