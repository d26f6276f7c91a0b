"""Results written to a file one at a time, so that an interrupted table resumes: {key: result} as JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from basis_search.files import read_json, write_json


class StoredResults:
    """A file of results by key; delete it to measure anew.

    Args:
        path: read if it exists, written after each new result.
    """

    def __init__(self, path: Path):
        self.path = path
        self.known: dict[str, Any] = read_json(path) if path.exists() else {}

    def of(self, key: str, run: Callable[[], Any]) -> Any:
        """The result of that key, a JSON value; computed by `run` unless it is stored."""
        if key not in self.known:
            self.known[key] = run()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, self.known)
        return self.known[key]
