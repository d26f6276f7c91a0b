"""Results kept as they are done, so that an interrupted table goes on where it was: {key: result} as JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from basis_search.files import read_json, write_json


class Record:
    """A file of results by key; delete it to measure anew.

    Args:
        path: read if it is there, written after each new result.
    """

    def __init__(self, path: Path):
        self.path = path
        self.known: dict[str, Any] = read_json(path) if path.exists() else {}

    def of(self, key: str, run: Callable[[], Any]) -> Any:
        """The result of that key, which JSON can hold; run unless it is known."""
        if key not in self.known:
            self.known[key] = run()
            self.path.parent.mkdir(exist_ok=True)
            write_json(self.path, self.known)
        return self.known[key]
