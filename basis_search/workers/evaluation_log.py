"""The evaluations of a run: a JSON-lines file that any number of workers append to, and memory of what it holds.

An evaluation's key is sha256(layer content, candidate, device, code): what was measured elsewhere, or by other code, is
another evaluation.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from basis_search.errors import BadInput
from basis_search.evaluation.evaluate import Evaluation
from basis_search.evaluation.fitted_store import FittedStore
from basis_search.evaluation.timing import Device
from basis_search.workers.leases import Claims
from basis_search.workers.shared_state import FileBoard


class Record:
    """Evaluations by key; what is added is on disk before `add` returns, and no key is there twice.

    With `path` None it lives in memory alone. Several processes may append to one file: each line is written in one
    piece under a lock, and `refresh` takes in what the others wrote. A last line without its end, left by a crash,
    is cut off and said.

    Args:
        path: the file.
        cache: a folder of evaluations that runs share; what stands there is not evaluated again.

    Attributes:
        claims: what this worker and the others have in hand.
        run: prefix of the names of its studies; empty where each run has a storage of its own.
        fitted: where workers store the fitted parameters of the layers' fronts; nowhere by default. Where it is set,
            evaluators are also given `params_file`.
    """

    run = ""

    def __init__(self, path: Path | None = None, cache: Path | None = None):
        self.path = path
        self.fitted: FittedStore | None = None
        self.claims = Claims(None if path is None else FileBoard(path.with_name("claims.json")))
        self._cache = None if cache is None else Cache(cache)
        self._position = 0
        self._by_key: dict[str, Evaluation] = {}
        self._by_layer: dict[str, list[Evaluation]] = defaultdict(list)
        self._by_kind: dict[tuple[str, str, Device, str], list[Evaluation]] = defaultdict(list)
        self.refresh()

    def __iter__(self) -> Iterator[Evaluation]:
        return iter(self._by_key.values())

    def __len__(self) -> int:
        return len(self._by_key)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, it is opened again in another process, as a worker of its own."""
        if not self.claims.shared:
            raise TypeError("a record in memory is this process's alone; give it a path to share it")
        cache = None if self._cache is None else self._cache.folder
        return type(self), (self.path, cache), {"fitted": self.fitted}

    def get(self, key: str) -> Evaluation | None:
        """The evaluation with that key, if there is one."""
        return self._by_key.get(key)

    def cached(self, key: str, layer_hash: str) -> Evaluation | None:
        """What another run found under that key."""
        return None if self._cache is None else self._cache.get(key, layer_hash)

    def of(
        self, layer_hash: str, family: str | None = None, device: Device | None = None, code: str | None = None
    ) -> list[Evaluation]:
        """All of one layer, or of one family, device and code as well, in the order they came."""
        if family is not None and device is not None and code is not None:  # what each trial asks, thousands of times
            return list(self._by_kind.get((layer_hash, family, device, code), ()))
        return [
            e
            for e in self._by_layer.get(layer_hash, ())
            if family in (None, e.candidate.family) and device in (None, e.device) and code in (None, e.code)
        ]

    def add(self, evaluation: Evaluation, **facts: Any) -> bool:
        """Keeps it, unless its key is there already; `facts` (worker, trial, times) stand beside it in the file.

        Returns:
            Whether it was new.

        Raises:
            BadInput: the file cannot be written; what it held before is untouched.
        """
        if evaluation.key in self._by_key:
            return False
        new = self.add_text(evaluation, json.dumps({**evaluation.to_json(), **facts}, allow_nan=False))
        if new and self._cache is not None and "cached" not in facts:
            self._cache.add(evaluation)
        return new

    def add_text(self, evaluation: Evaluation, text: str) -> bool:
        """The same with the line as another record stores it."""
        if evaluation.key in self._by_key:
            return False
        new = self._store(evaluation, text)
        self._keep(evaluation)
        return new

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
            self._keep(Evaluation.from_json(parse(line, str(self.path))))

    def _keep(self, evaluation: Evaluation) -> None:
        if evaluation.key not in self._by_key:
            self._by_key[evaluation.key] = evaluation
            self._by_layer[evaluation.layer_hash].append(evaluation)
            kind = (evaluation.layer_hash, evaluation.candidate.family, evaluation.device, evaluation.code)
            self._by_kind[kind].append(evaluation)

    def _store(self, evaluation: Evaluation, text: str) -> bool:
        if self.path is None:
            return True
        try:
            return self._append(evaluation.key, text.encode() + b"\n")
        except OSError as problem:
            raise BadInput(
                f"{self.path} cannot be written: {problem.strerror}; free space or name another run folder"
            ) from problem

    def _append(self, key: str, line: bytes) -> bool:
        assert self.path is not None
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                size = self._cut_torn_line(descriptor, size)
            self.refresh()
            if key in self._by_key:
                return False  # another worker, which took us for dead, was faster
            try:
                if os.write(descriptor, line) != len(line):
                    raise OSError(28, "the disk is full")
            except OSError:
                os.ftruncate(descriptor, size)
                raise
            os.fsync(descriptor)
            if size == 0:
                _sync_folder(self.path.parent)
            self._position = size + len(line)
            return True
        finally:
            os.close(descriptor)

    def _cut_torn_line(self, descriptor: int, size: int) -> int:
        content = os.pread(descriptor, size, 0)
        end = content.rfind(b"\n") + 1
        print(f"{self.path}: the last line was cut off by a crash; its {size - end} bytes are dropped", file=sys.stderr)
        os.ftruncate(descriptor, end)
        return end


class Cache:
    """Evaluations that runs share: a folder with one record per layer content."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._records: dict[str, Record] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise BadInput(
                f"the cache {folder} cannot be made: {problem.strerror}; name another with cache=DIR"
            ) from problem

    def get(self, key: str, layer_hash: str) -> Evaluation | None:
        """What any run found under that key."""
        return self._of(layer_hash).get(key)

    def add(self, evaluation: Evaluation) -> None:
        """Keeps it for other runs, unless it failed: a limit of one run is not another's."""
        if evaluation.failure is None:
            self._of(evaluation.layer_hash).add(evaluation)

    def _of(self, layer_hash: str) -> Record:
        if layer_hash not in self._records:
            self._records[layer_hash] = Record(self.folder / f"{layer_hash}.jsonl")
        record = self._records[layer_hash]
        record.refresh()
        return record


def _sync_folder(folder: Path) -> None:
    """A new file's name is on disk as well."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def parse(line: bytes | str, where: str) -> Any:
    """The JSON value of one stored line; raises BadInput, naming `where`, if there is none."""
    try:
        return json.loads(line)
    except ValueError as problem:
        raise BadInput(f"{where} holds a line that is not JSON ({problem}); was it edited by hand?") from problem
