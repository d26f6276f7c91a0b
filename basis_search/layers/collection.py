"""Captured layers as a collection, and as a directory of JSON and safetensors files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from basis_search.errors import BadInput, near_miss
from basis_search.files import (
    check_document,
    file_name,
    read_json,
    read_tensors,
    sha256,
    write_json,
)
from basis_search.layers.layer import Layer
from basis_search.layers.output_metric import OutputMetric

FORMAT = "basis_search.layers"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Layers:
    """Captured layers, in the model's order."""

    layers: tuple[Layer, ...]

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, name: str) -> Layer:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise BadInput(f"there is no captured layer {name!r}{near_miss(name, self.names)}")

    @property
    def names(self) -> list[str]:
        return [layer.name for layer in self.layers]

    def select(self, patterns: str | Sequence[str], exclude: str | Sequence[str] = ()) -> Layers:
        """The layers whose names match, except those excluded: exact names, or regular expressions after "re:".

        Raises:
            BadInput: a name that is not there, a pattern that is not a regular expression, or no layer is left.
        """
        for given in (patterns, exclude):
            for name in [given] if isinstance(given, str) else given:
                if not name.startswith("re:"):
                    self[name]
        chosen = tuple(
            layer for layer in self.layers if matches(layer.name, patterns) and not matches(layer.name, exclude)
        )
        if not chosen:
            but = f" and is not excluded by {exclude!r}" if exclude else ""
            raise BadInput(f"no captured layer matches {patterns!r}{but}; captured are: {', '.join(self.names)}")
        return Layers(chosen)

    def to(self, device: str | int | torch.device | None = None, dtype: str | torch.dtype | None = None) -> Layers:
        """The same layers, running on another device or in another dtype; their tensors are shared.

        Layers captured on one machine are searched on another: `Layers.load(...).to("cuda", "bfloat16")`.

        Raises:
            BadInput: a device that torch does not see, or a dtype in which no dense layer runs.
        """
        return Layers(tuple(layer.to(device, dtype) for layer in self.layers))

    def save(self, directory: str | Path) -> None:
        """Writes layers.json and one safetensors file per layer, wherever its tensors lie; not the device."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        entries = []
        for layer in self.layers:
            path = directory / file_name(layer.name, ".safetensors")
            save_file({k: v.detach().cpu().contiguous().clone() for k, v in layer.tensors.items()}, path)
            entries.append(
                {
                    "name": layer.name,
                    "file": path.name,
                    "sha256": sha256(path),
                    "batch": layer.batch,
                    "dtype": str(layer.dtype).removeprefix("torch."),
                    "sensitivity": layer.sensitivity,
                    "calls": layer.calls,
                    "aliases": list(layer.aliases),
                }
            )
        write_json(directory / "layers.json", {"format": FORMAT, "schema_version": SCHEMA_VERSION, "layers": entries})

    @classmethod
    def load(cls, directory: str | Path) -> Layers:
        """Reads what `save` wrote, as layers that run on the CPU; `to` gives them another device.

        Raises:
            BadInput: the directory holds no captured layers, or a file was cut or edited (sha256).
        """
        directory = Path(directory)
        path = directory / "layers.json"
        if not path.is_file():
            raise BadInput(
                f"{directory} holds no captured layers: there is no layers.json; make one with "
                "basis_search.capture(model, batches).save(directory)"
            )
        document = read_json(path)
        check_document(document, FORMAT, SCHEMA_VERSION, path)
        layers = []
        try:
            for entry in document["layers"]:
                tensors = read_tensors(directory, entry["file"], entry["sha256"])
                layers.append(
                    Layer(
                        name=entry["name"],
                        weight=tensors["weight"],
                        bias=tensors.get("bias"),
                        inputs=tensors["inputs"],
                        held_out=tensors["held_out"],
                        batch=entry["batch"],
                        dtype=getattr(torch, entry["dtype"]),
                        sensitivity=float(entry["sensitivity"]),
                        moment=tensors.get("moment"),
                        gradient_moment=tensors.get("gradient_moment"),
                        calls=entry.get("calls", 1),
                        aliases=tuple(entry.get("aliases", ())),
                        output_metric=OutputMetric.from_tensors(tensors),
                    )
                )
        except (KeyError, TypeError, AttributeError) as problem:
            raise BadInput(f"{path} was not written by basis_search: {problem!r}") from problem
        if not layers:
            raise BadInput(f"{path} lists no layer; capture at least one")
        return cls(tuple(layers))


def digest(directory: Path) -> str:
    """Digest of the names, contents and batches of the layers captured in `directory`."""
    entries = read_json(directory / "layers.json")["layers"]
    content = sorted((entry["name"], entry["sha256"], entry["batch"]) for entry in entries)
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def matches(name: str, patterns: str | Sequence[str]) -> bool:
    """Whether a name is one of the patterns, or fully matches a regular expression after "re:"."""
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if pattern.startswith("re:"):
            try:
                if re.fullmatch(pattern[3:], name):
                    return True
            except re.error as problem:
                raise BadInput(f"{pattern!r} is not a regular expression: {problem}") from problem
        elif pattern == name:
            return True
    return False
