"""CPU seconds and peak memory in bytes of a call in this process, as Linux counts them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Spent:
    seconds: float = 0.0
    bytes: int = 0


@contextmanager
def measured() -> Iterator[Spent]:
    """CPU seconds spent inside, and the growth of resident memory from before to its peak inside."""
    spent = Spent()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew here
    before, start = _kilobytes("VmRSS"), time.process_time()
    try:
        yield spent
    finally:
        spent.seconds = time.process_time() - start
        spent.bytes = max(0, _kilobytes("VmHWM") - before) * 1024


def _kilobytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise AssertionError(f"/proc/self/status has no {key}")
