"""Run the parts of a suite, print each as a table, write all rows as JSON."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

    A part is a function of the device and the number of threads, and of `quick` where it has a quick form. It returns
    its rows, or yields them one by one, so that an interrupted part leaves its finished rows.

    Raises:
        BadInput: an unknown part, an unavailable device, an unwritable file, no time.
    """
    suite = suite_named(config.suite)
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
    if config.seconds is not None and not config.seconds > 0:
        raise BadInput(f"seconds is {config.seconds}, but a time above 0 is needed, or null for no limit")
    if config.threads < 1:
        raise BadInput(f"threads is {config.threads}, but at least 1 is needed")
    device = dataclasses.asdict(fingerprint(torch.device(config.device), config.threads))
    print(f"suite {config.suite}, device {device}")
    rows: list[Row] = []
    here = [part for part in parts if devices.get(part, config.device) == config.device]
    for part in here if config.part == "all" else [config.part]:
        found: list[Row] = []
        for row in _rows(config, parts[part]):
            found.append(row)
            rows.append({"part": part, **row})
            if config.json is not None:
                document = {"suite": config.suite, "part": config.part, "device": device, "rows": rows}
                try:
                    write_json(Path(config.json), document)
                except OSError as problem:
                    raise BadInput(f"{config.json} cannot be written: {problem.strerror}") from problem
        print(f"\n{part}\n{table(found)}", flush=True)


def suite_named(name: str) -> Any:
    """The module with the suite's PARTS, and DEVICES of parts restricted to one device."""
    return importlib.import_module(f"basis_search.bench.{name}.suite")


def _rows(config: BenchConfig, part: Callable[..., Iterable[Row]]) -> Iterator[Row]:
    """The rows of a part, until its time is up; the last row says so."""
    more = {"quick": True} if config.quick and "quick" in inspect.signature(part).parameters else {}
    start = time.monotonic()
    for row in part(device=config.device, threads=config.threads, **more):
        yield row
        if config.seconds is not None and time.monotonic() - start > config.seconds:
            yield {"case": f"stopped after {config.seconds:g} s; more rows may follow without seconds="}
            return


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
