"""Tuning files: measured configurations as JSON, a file per GPU, looked up by nearest shape in log space.

A file is {"format": 1, "gpu": name, "entries": [...]}, each entry {"kernel", "exact", "sizes", "configuration",
"microseconds", "closed_form_microseconds"}. Where another way gives the same result, "whole_microseconds" is the time
of the layer with this kernel and "other_microseconds" with the other. Files are looked for in BASIS_SEARCH_TUNING (a
file or a folder), in the user's cache, and in this package, in that order.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from basis_kernels.launch.configuration import Configuration, Problem, Space

ENVIRONMENT = "BASIS_SEARCH_TUNING"
CLOSED_FORM = "closed-form"
"""The value of BASIS_SEARCH_TUNING that leaves out all files."""
FORMAT = 1
TABLES = Path(__file__).parent / "tables"
NEAR = 4.0
"""A tuned problem counts where no size differs by more than this factor; beyond, nothing is known."""

Entry = Mapping[str, Any]


def user_folder() -> Path:
    """Where `basis-search tune` writes."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "basis_search" / "gpu_tuning"


def file_name(gpu: str) -> str:
    """Such as "NVIDIA-H200.json"."""
    return re.sub(r"[^A-Za-z0-9]+", "-", gpu).strip("-") + ".json"


def paths(gpu: str) -> Iterator[Path]:
    """The existing files for that GPU, first the one that counts most."""
    named = os.environ.get(ENVIRONMENT)
    if named == CLOSED_FORM:
        return
    places = [user_folder() / file_name(gpu), TABLES / file_name(gpu)]
    if named:
        path = Path(named)
        if not path.exists():
            raise ValueError(f"{ENVIRONMENT} names {named}, which does not exist; write it with `basis-search tune`")
        places.insert(0, path / file_name(gpu) if path.is_dir() else path)
    yield from (path for path in places if path.is_file())


def read(path: Path) -> list[Entry]:
    """The entries of a file.

    Raises:
        ValueError: it is no tuning file.
    """
    remedy = "delete it, or write it anew with `basis-search tune`"
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as problem:
        raise ValueError(f"{path} is no tuning file ({problem}); {remedy}") from problem
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"{path} is no tuning file of format {FORMAT}; {remedy}")
    entries = document.get("entries")
    if not isinstance(entries, list) or not all(_is_entry(entry) for entry in entries):
        raise ValueError(f"{path} has an entry that is none; {remedy}")
    return entries


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("kernel"), str):
        return False
    if not all(isinstance(entry.get(name), dict) for name in ("exact", "sizes", "configuration")):
        return False
    numbers = [*entry["sizes"].values(), *entry["configuration"].values()]
    return all(type(value) is int and value > 0 for value in numbers)


def write(path: Path, gpu: str, entries: list[Entry]) -> None:
    """Writes the whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": FORMAT, "gpu": gpu, "entries": entries}, indent=1)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    os.replace(file.name, path)


@lru_cache(maxsize=64)
def _known(path: Path, changed: int) -> list[Entry]:
    return read(path)


def nearest(space: Space, problem: Problem, gpu: str) -> tuple[Entry, Configuration] | None:
    """The entry of the nearest tuned problem with its configuration, from the first file that knows a near one."""
    for path in paths(gpu):
        found = nearest_of(_known(path, path.stat().st_mtime_ns), space, problem)
        if found is not None:
            return found
    return None


def nearest_of(entries: list[Entry], space: Space, problem: Problem) -> tuple[Entry, Configuration] | None:
    """As `nearest`, among those entries; only configurations that fit the problem count."""
    exact, sizes = space.exact_of(problem), space.sizes_of(problem)
    best, least = None, math.inf
    for entry in entries:
        if entry["kernel"] != space.name or entry["exact"] != exact or entry["sizes"].keys() != sizes.keys():
            continue
        apart = [abs(math.log2(entry["sizes"][name] / max(1, size))) for name, size in sizes.items()]
        distance = math.hypot(*apart)
        if max(apart, default=0.0) > math.log2(NEAR) or distance >= least:
            continue
        for candidate in space.candidates:
            if candidate.to_json() == entry["configuration"] and space.fits(candidate, problem):
                best, least = (entry, candidate), distance
    return best
