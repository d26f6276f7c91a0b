"""Which workers are dead: by the process table of their own machine, elsewhere by heartbeats that stop."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

HEARTBEAT_SECONDS, MAX_MISSED_HEARTBEATS = 5.0, 6
"""Time between a worker's heartbeats, and how many must be missed before it counts as dead: half a minute."""


class DeathCheck:
    """Whether a worker is dead, by repeated looks at its entry in the shared state."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[Any, float]] = {}  # worker -> its count, and the observer's when it last changed

    def __call__(self, name: str, worker: Mapping[str, Any], heartbeats: float) -> bool:
        """True once its process has ended on this machine, or its count has not changed for too long.

        Args:
            name: the worker's id.
            worker: its entry in the shared state, with "beats", "place", "pid" and "began".
            heartbeats: the observer's own count, or the time that its own would have taken.
        """
        if (
            worker.get("place") == place()
            and isinstance(worker.get("pid"), int)
            and start_time(worker["pid"]) != worker.get("began")
        ):
            return True
        beats, since = self._seen.get(name, (None, heartbeats))
        if beats != worker.get("beats"):
            self._seen[name] = (worker.get("beats"), heartbeats)
            return False
        return heartbeats - since > MAX_MISSED_HEARTBEATS


@lru_cache
def place() -> str:
    """Where process numbers mean the same: one boot of one machine, one process namespace, one host name."""

    def read(path: str) -> str:
        try:
            return Path(path).read_text().strip()
        except OSError:
            return ""

    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return f"{socket.gethostname()} {read('/proc/sys/kernel/random/boot_id')} {namespace}"


def start_time(pid: int) -> int | None:
    """When a running process began, in ticks since boot; None if there is none, or it is dead and not yet reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])
