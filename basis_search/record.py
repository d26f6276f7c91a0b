"""The evaluations of a run: a JSON-lines file that any number of workers append to, and memory of what it holds."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from basis_search.errors import BadInput
from basis_search.evaluate import Evaluation


class Record:
    """Evaluations by layer and candidate; what is added is on disk before `add` returns.

    With `path` None it lives in memory alone. Several processes may append to one file: each line is written in one
    piece under a lock, and `refresh` takes in what the others wrote. A last line without its end, left by a crash,
    is cut off and said.
    """

    def __init__(self, path: Path | None = None):
        self.path = path
        self._position = 0
        self._by_key: dict[tuple[str, str], Evaluation] = {}
        self.refresh()

    def __iter__(self) -> Iterator[Evaluation]:
        return iter(self._by_key.values())

    def __len__(self) -> int:
        return len(self._by_key)

    def get(self, layer_hash: str, candidate_hash: str) -> Evaluation | None:
        """The evaluation of that candidate on that very layer, if there is one."""
        return self._by_key.get((layer_hash, candidate_hash))

    def of(self, layer_hash: str, family: str | None = None) -> list[Evaluation]:
        """All of one layer, or of one layer and family."""
        return [
            e for (layer, _), e in self._by_key.items() if layer == layer_hash and family in (None, e.candidate.family)
        ]

    def add(self, evaluation: Evaluation, **facts: Any) -> None:
        """Keeps it; `facts` (worker, trial, times) stand beside it in the file.

        Raises:
            BadInput: the file cannot be written; what it held before is untouched.
        """
        if self.path is not None:
            line = json.dumps({**evaluation.to_json(), **facts}, allow_nan=False) + "\n"
            try:
                self._append(line)
            except OSError as problem:
                raise BadInput(
                    f"{self.path} cannot be written: {problem.strerror}; free space or name another run folder"
                ) from problem
        self._keep(evaluation)

    def refresh(self) -> None:
        """Takes in the lines that other processes have added since."""
        if self.path is None or not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._position)
            tail = file.read()
        whole, _, cut = tail.rpartition(b"\n")
        if not whole:
            return
        self._position += len(tail) - len(cut)
        for line in whole.split(b"\n"):
            self._keep(Evaluation.from_json(_parse(line, self.path)))

    def _keep(self, evaluation: Evaluation) -> None:
        self._by_key.setdefault((evaluation.layer_hash, evaluation.candidate.hash), evaluation)

    def _append(self, line: str) -> None:
        assert self.path is not None
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                size = self._cut_torn_line(descriptor, size)
            data = line.encode()
            try:
                if os.write(descriptor, data) != len(data):
                    raise OSError(28, "the disk is full")
            except OSError:
                os.ftruncate(descriptor, size)
                raise
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _cut_torn_line(self, descriptor: int, size: int) -> int:
        content = os.pread(descriptor, size, 0)
        end = content.rfind(b"\n") + 1
        print(f"{self.path}: the last line was cut off by a crash; its {size - end} bytes are dropped", file=sys.stderr)
        os.ftruncate(descriptor, end)
        return end


def _parse(line: bytes, path: Path) -> Any:
    try:
        return json.loads(line)
    except ValueError as problem:
        raise BadInput(f"{path} holds a line that is not JSON ({problem}); was it edited by hand?") from problem
