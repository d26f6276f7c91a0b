"""What every distinct candidate of a few layers is worth and costs, found once and kept: studies are replayed on it."""

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
from basis_search.evaluation.evaluate import (
    Candidate,
    Evaluation,
    evaluate,
    failed,
)
from basis_search.families import family as family_named
from basis_search.families.protocol import spec_hash
from basis_search.layers.collection import Layers
from basis_search.layers.layer import Layer

DIGITS = ("blocks.0.qkv", "blocks.1.proj", "blocks.1.fc1", "blocks.2.fc2", "blocks.3.qkv", "blocks.3.fc1")
"""Each kind of layer of the digits transformer, from each of its blocks."""
DECAYS = (0.5, 1.0)
"""Exponents of the 768 -> 3072 layers: singular values i^-decay under inputs whose directions fall as i^-0.5."""
SAMPLES, BATCH = 1280, 128
MOST_SECONDS = 15.0


@dataclasses.dataclass(frozen=True)
class Entry:
    """One candidate on one layer: its evaluation, and CPU seconds of each rung by name."""

    evaluation: Evaluation
    seconds: Mapping[str, float]


class Table:
    """A JSON-lines file of entries; a candidate that is not there is evaluated, timed and appended when asked for."""

    def __init__(self, path: Path):
        self.path = path
        self.filled = 0
        self._entries: dict[tuple[str, str], Entry] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                data = json.loads(line)
                entry = Entry(Evaluation.from_json(data["evaluation"]), data["seconds"])
                self._entries[data["layer"], entry.evaluation.candidate.hash] = entry
        path.parent.mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        return len(self._entries)

    def of(self, layer: Layer) -> list[Evaluation]:
        """All that is known of a layer."""
        key = _key(layer)
        return [entry.evaluation for (name, _), entry in self._entries.items() if name == key]

    def __call__(self, layer: Layer, family: str, spec: Any) -> Entry:
        """The entry of a candidate; of a layer with fewer rows than it was made with, its own."""
        key = _key(layer), spec_hash(family, spec)
        if key not in self._entries:
            entry = self._entries[key] = _measured(layer, family, spec)
            line = {"layer": key[0], "evaluation": entry.evaluation.to_json(), "seconds": dict(entry.seconds)}
            with self.path.open("a") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
            self.filled += 1
        return self._entries[key]


def _key(layer: Layer) -> str:
    """By name and shape: the last bits of a trained weight differ between machines, what a table is for does not."""
    few = f", fitted to {len(layer.inputs)}" if layer.moment is None and layer.name in DIGITS else ""
    return f"{layer.name} {layer.in_features} -> {layer.out_features}, {layer.batch} rows{few}"


def _measured(layer: Layer, family: str, spec: Any) -> Entry:
    started = time.process_time()
    try:
        with _at_most(MOST_SECONDS):
            params = family_named(family).fit(spec, layer)
    except (BadInput, ValueError, RuntimeError, ArithmeticError):
        params = None  # evaluate() fits again and tells the reason
    except TimeoutError:
        reason = f"it took longer than {MOST_SECONDS:g} s to fit"
        return Entry(failed(layer, Candidate(layer.name, family, spec), reason), {"fit": MOST_SECONDS, "kernel": 0.0})
    fitted = time.process_time()
    few = layer.moment is None and layer.name in DIGITS  # a sketch: only its error is wanted
    most_error = -1.0 if few else math.inf
    # The process's own time: what else runs on the machine does not count.
    evaluation = evaluate(layer, family, spec, params=params, most_error=most_error, clock=time.process_time)
    return Entry(evaluation, {"fit": fitted - started, "kernel": time.process_time() - fitted})


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """TimeoutError inside after so much of the process's time, as a search's trial_seconds would have it."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGVTALRM, late)
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
    """Layers of the digits transformer, which is trained into `folder` where it is not there yet.

    Raises:
        BadInput: the model is not there and its example is not either.
    """
    captured = folder / "digits" / "layers"
    if not captured.is_dir():
        script = Path("examples/digits/train.py")
        if not script.is_file():
            raise BadInput(
                f"{captured} is not there, and neither is {script} that makes it; run this from a checkout of the "
                "project"
            )
        subprocess.run([sys.executable, str(script), "--out", str(captured.parent)], check=True)
    return list(Layers.load(captured).select(list(names)))


def layers(folder: Path) -> list[Layer]:
    """Six of the digits transformer and two with falling spectra.

    Raises:
        BadInput: as `digits_layers`.
    """
    return [*digits_layers(folder, DIGITS), *(spectral_layer(decay, seed) for seed, decay in enumerate(DECAYS))]


def seed_of(*facts: object) -> int:
    """32 bits from anything printable."""
    return int.from_bytes(hashlib.sha256(repr(facts).encode()).digest()[:4])
