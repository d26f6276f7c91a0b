"""Run the parts of a suite, print each as a table, write all rows as JSON."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from basis_search.config import BenchConfig
from basis_search.errors import BadInput, near_miss
from basis_search.evaluation.timing import fingerprint
from basis_search.files import write_json

Row = Mapping[str, Any]


def run_suite(config: BenchConfig) -> None:
    """Prints the tables that the config selects and, with `json`, writes {suite, part, device, rows} as well.

    Raises:
        BadInput: an unknown part, an unavailable device, an unwritable file.
    """
    suite = importlib.import_module(f"basis_search.bench.{config.suite}.suite")
    parts, devices = suite.PARTS, getattr(suite, "DEVICES", {})  # of parts restricted to one device
    if config.part != "all" and config.part not in parts:
        raise BadInput(
            f"the suite {config.suite!r} has no part {config.part!r}{near_miss(config.part, [*parts, 'all'])}"
        )
    if config.device not in ("cpu", "cuda"):
        raise BadInput(f"there is no device {config.device!r}{near_miss(config.device, ['cpu', 'cuda'])}")
    if (only := devices.get(config.part, config.device)) != config.device:
        kind = "a GPU" if only == "cuda" else "the CPU"
        raise BadInput(f"part={config.part} measures {kind}; add device={only}")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise BadInput("device=cuda was asked for, but torch sees no CUDA device here; use device=cpu")
    if config.threads < 1:
        raise BadInput(f"threads is {config.threads}, but at least 1 is needed")
    device = dataclasses.asdict(fingerprint(torch.device(config.device), config.threads))
    print(f"suite {config.suite}, device {device}")
    rows: list[Row] = []
    here = [part for part in parts if devices.get(part, config.device) == config.device]
    for part in here if config.part == "all" else [config.part]:
        found = parts[part](device=config.device, threads=config.threads)
        print(f"\n{part}\n{table(found)}", flush=True)
        rows += [{"part": part, **row} for row in found]
        if config.json is not None:  # after each part, so that an interrupted suite leaves its finished parts
            document = {"suite": config.suite, "part": config.part, "device": device, "rows": rows}
            try:
                write_json(Path(config.json), document)
            except OSError as problem:
                raise BadInput(f"{config.json} cannot be written: {problem.strerror}") from problem


def table(rows: Sequence[Row]) -> str:
    """Rows as aligned text; the columns are the keys in the order they appear."""
    if not rows:
        return "(no rows)"
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([_text(row.get(c)) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]])


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
