"""A table of evaluations of a few layers with their CPU seconds, on which studies are replayed."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from basis_search.errors import BadInput
from basis_search.evaluation.candidate import Candidate, Evaluation, failed
from basis_search.evaluation.evaluate import Conditions, evaluate_fit
from basis_search.families import family as family_named
from basis_search.families.protocol import Params, spec_hash
from basis_search.files import append_line, new_lines
from basis_search.layers.collection import Layers
from basis_search.layers.layer import Layer

DIGITS = ("blocks.0.qkv", "blocks.1.proj", "blocks.1.fc1", "blocks.2.fc2", "blocks.3.qkv", "blocks.3.fc1")
"""Layers of the digits transformer: each kind, from each block."""
DECAYS = (0.5, 1.0)
"""Exponents of the 768 -> 3072 layers, whose singular values are i^-decay."""
SAMPLES, BATCH = 1280, 128
MOST_SECONDS = 15.0


@dataclasses.dataclass(frozen=True)
class TableEntry:
    """One candidate on one layer: its evaluation, and CPU seconds of "fit" and of "kernel" (check and timing)."""

    evaluation: Evaluation
    seconds: Mapping[str, float]


class EvaluationTable:
    """A JSON-lines file of entries; a missing candidate is evaluated, timed and appended on demand."""

    def __init__(self, path: Path):
        self.path = path
        self.filled = 0
        self._entries: dict[tuple[str, str], TableEntry] = {}
        for line in new_lines(path)[0]:
            data = json.loads(line)
            entry = TableEntry(Evaluation.from_json(data["evaluation"]), data["seconds"])
            self._entries[data["layer"], entry.evaluation.candidate.hash] = entry
        path.parent.mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        return len(self._entries)

    def of(self, layer: Layer) -> list[Evaluation]:
        """All evaluations of a layer."""
        key = _key(layer)
        return [entry.evaluation for (name, _), entry in self._entries.items() if name == key]

    def __call__(self, layer: Layer, family: str, spec: Any) -> TableEntry:
        """The entry of a candidate; a layer reduced to fewer rows has separate entries."""
        key = _key(layer), spec_hash(family, spec)
        if key not in self._entries:
            entry = self._entries[key] = _measured(layer, family, spec)
            line = {"layer": key[0], "evaluation": entry.evaluation.to_json(), "seconds": dict(entry.seconds)}
            append_line(self.path, json.dumps(line, allow_nan=False).encode() + b"\n")
            self.filled += 1
        return self._entries[key]


def _key(layer: Layer) -> str:
    """Name and shape, not content: the last bits of trained weights differ between machines."""
    few = f", fitted to {len(layer.inputs)}" if layer.moment is None and layer.name in DIGITS else ""
    return f"{layer.name} {layer.in_features} -> {layer.out_features}, {layer.batch} rows{few}"


def _measured(layer: Layer, family: str, spec: Any) -> TableEntry:
    candidate, started = Candidate(layer.name, family, spec), time.process_time()
    fitted = started

    def fit() -> Params:
        nonlocal fitted
        try:
            with _at_most(MOST_SECONDS):
                return family_named(family).fit(spec, layer)
        finally:
            fitted = time.process_time()

    few = layer.moment is None and layer.name in DIGITS  # the few-samples stage needs the error alone
    most_error = -1.0 if few else math.inf
    # CPU time of this process excludes other work on the machine.
    conditions = Conditions(most_error=most_error, timer=time.process_time)
    try:
        evaluation = evaluate_fit(layer, candidate, fit, conditions)
    except TimeoutError:
        reason = f"it took longer than {MOST_SECONDS:g} s to fit"
        return TableEntry(failed(layer, candidate, reason), {"fit": MOST_SECONDS, "kernel": 0.0})
    return TableEntry(evaluation, {"fit": fitted - started, "kernel": time.process_time() - fitted})


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in the body after `seconds` of CPU time, as a search's trial_seconds does."""

    def expire(number: int, frame: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGVTALRM, expire)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def spectral_layer(decay: float, seed: int, features: int = 768, out: int = 3072) -> Layer:
    """A layer [out, in] with singular values i^-decay, inputs of principal deviations i^-0.5, in random bases."""
    generator = torch.Generator().manual_seed(seed)

    def orthonormal(rows: int) -> torch.Tensor:  # [rows, features]
        basis: torch.Tensor = torch.linalg.qr(torch.randn(rows, features, generator=generator)).Q
        return basis

    order = torch.arange(1, features + 1, dtype=torch.float32)
    weight = orthonormal(out) * order**-decay @ orthonormal(features).T
    inputs = torch.randn(SAMPLES, features, generator=generator) @ (orthonormal(features) * order**-0.5).T
    linear = torch.nn.Linear(features, out)
    with torch.no_grad():
        linear.weight.copy_(0.02 * weight / weight.std())
        linear.bias.zero_()
    return Layer.from_linear(linear, inputs, f"spectrum i^-{decay}", batch=BATCH)


def digits_layers(folder: Path, names: Sequence[str]) -> list[Layer]:
    """Layers of the digits transformer, which is trained into `folder` unless it exists there.

    Raises:
        BadInput: neither the model nor the example that trains it exists.
    """
    captured = folder / "digits" / "layers"
    if not captured.is_dir():
        script = Path("examples/digits/train.py")
        if not script.is_file():
            raise BadInput(
                f"{captured} does not exist, and neither does {script}, which makes it; run this from a "
                "checkout of the project"
            )
        subprocess.run([sys.executable, str(script), "--out", str(captured.parent)], check=True)
    return list(Layers.load(captured).select(list(names)))


def layers(folder: Path) -> list[Layer]:
    """Six layers of the digits transformer and two with power-law spectra.

    Raises:
        BadInput: as `digits_layers`.
    """
    return [*digits_layers(folder, DIGITS), *(spectral_layer(decay, seed) for seed, decay in enumerate(DECAYS))]


def seed_of(*facts: object) -> int:
    """A 32-bit seed from the representation of `facts`."""
    return int.from_bytes(hashlib.sha256(repr(facts).encode()).digest()[:4])
