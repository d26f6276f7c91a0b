"""The evaluation log of a run: a JSON-lines file that any number of workers append to, indexed in memory.

An evaluation's key is sha256(layer content, candidate, device, code): measured on another device, or by other code, it
is another evaluation.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from basis_search.errors import BadInput
from basis_search.evaluation import temporary_store
from basis_search.evaluation.candidate import Evaluation
from basis_search.evaluation.fitted_store import FittedStore
from basis_search.evaluation.timing import Device
from basis_search.files import append_line, new_lines, place_of
from basis_search.workers.leases import Leases
from basis_search.workers.run_folder import RunFolder
from basis_search.workers.shared_state import FileState


@dataclass(frozen=True)
class Entry:
    """One line of a log.

    Attributes:
        evaluation: the result.
        worker, trial: who made it, and optuna's number of it.
        started, finished: unix seconds, zero where unknown.
        data: the line's JSON object.
    """

    evaluation: Evaluation
    worker: int = 0
    trial: int = 0
    started: float = 0.0
    finished: float = 0.0
    data: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_json(cls, data: Any) -> Entry:
        """The entry in a line's JSON value. Raises BadInput: it is none, or a newer version wrote it."""
        evaluation = Evaluation.from_json(data)
        try:
            worker, trial, started, finished = (
                float(data.get(key) or 0) for key in ("worker", "trial", "started", "finished")
            )
            return cls(evaluation, int(worker), int(trial), started, finished, data)
        except (TypeError, ValueError, OverflowError) as problem:
            raise BadInput(f"this is no line of an evaluation log: {problem}") from problem


class Record:
    """Evaluations by key; an evaluation is on disk before `add` returns, and no key is stored twice.

    Several processes may append to one file: each line is written in one piece under a lock, and `refresh` reads the
    lines of the others. A last line without its end, left by a crash, is cut off and reported on stderr.

    Args:
        path: the file; None for a record in memory alone.
        cache: a folder of evaluations that runs share; those in it are not evaluated again.

    Attributes:
        leases: which worker evaluates which candidate; also `claims`, the name of version 0.1.0.
        run: prefix of the names of its studies; empty where each run has a storage of its own.
        fitted: where workers store the fitted parameters of the layers' fronts: `fitted/` next to the file, or a
            temporary folder. With None they store none.
        cached_fitted: the fitted parameters that runs share through the cache; None without a cache.
    """

    run = ""

    def __init__(self, path: Path | None = None, cache: Path | None = None):
        self.path = path
        self.fitted: FittedStore | None = (
            temporary_store.of_this_process() if path is None else FittedStore(RunFolder(path.parent).fitted)
        )
        self.leases = self.claims = Leases(None if path is None else FileState(RunFolder(path.parent).leases_file))
        self._cache = None if cache is None else Cache(cache)
        self.cached_fitted = None if self._cache is None else self._cache.fitted
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
        """A pickled record is opened again in the other process, with a worker id of its own there."""
        if not self.leases.shared:
            raise TypeError("a record in memory belongs to this process alone; give it a path to share it")
        cache = None if self._cache is None else self._cache.folder
        return type(self), (self.path, cache), {"fitted": self.fitted}

    def get(self, key: str) -> Evaluation | None:
        """The evaluation with that key, if there is one."""
        return self._by_key.get(key)

    def cached(self, key: str, layer_hash: str) -> Evaluation | None:
        """The evaluation that another run stored under that key in the cache."""
        return None if self._cache is None else self._cache.get(key, layer_hash)

    def of(
        self, layer_hash: str, family: str | None = None, device: Device | None = None, code: str | None = None
    ) -> list[Evaluation]:
        """All evaluations of one layer, or of one family, device and code as well, in the order of their arrival."""
        if (
            family is not None and device is not None and code is not None
        ):  # the question of every trial, thousands of times
            return list(self._by_kind.get((layer_hash, family, device, code), ()))
        return [
            e
            for e in self._by_layer.get(layer_hash, ())
            if family in (None, e.candidate.family) and device in (None, e.device) and code in (None, e.code)
        ]

    def add(self, evaluation: Evaluation, **facts: Any) -> bool:
        """Stores an evaluation unless its key is known; `facts` (worker, trial, times) are stored in the same line.

        Returns:
            Whether it was new.

        Raises:
            BadInput: the file cannot be written; its earlier lines are untouched.
        """
        if evaluation.key in self._by_key:
            return False
        new = self.add_text(evaluation, json.dumps({**evaluation.to_json(), **facts}, allow_nan=False))
        if new and self._cache is not None and "cached" not in facts:
            self._cache.add(evaluation)
        return new

    def add_text(self, evaluation: Evaluation, text: str) -> bool:
        """As `add`, with the line as another record stores it."""
        if evaluation.key in self._by_key:
            return False
        new = self._store(evaluation, text)
        self._keep(evaluation)
        return new

    def refresh(self) -> None:
        """Reads the lines that other processes have added since.

        Raises:
            BadInput: a line is damaged, or a newer version wrote it; the sentence names the file and the line.
        """
        if self.path is not None:
            lines, position = new_lines(self.path, self._position)
            for line in lines:
                try:
                    self._keep(Evaluation.from_json(json_value(line)))
                except BadInput as problem:
                    raise BadInput(f"{place_of(self.path, line)}: {problem}") from problem
            self._position = position

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
            end = append_line(self.path, text.encode() + b"\n", unless=lambda: self._is_there(evaluation.key))
        except OSError as problem:
            raise BadInput(
                f"{self.path} cannot be written: {problem.strerror}; free space or name another run folder"
            ) from problem
        self._position = max(self._position, end)
        return end >= 0

    def _is_there(self, key: str) -> bool:
        """Whether another worker, which took this one for dead, has stored it meanwhile."""
        self.refresh()
        return key in self._by_key


class Cache:
    """Evaluations that runs share: a folder with one record per layer content, and their fitted parameters."""

    def __init__(self, folder: Path):
        self.folder, self.fitted = folder, FittedStore(RunFolder(folder).fitted)
        self._records: dict[str, Record] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise BadInput(
                f"the cache {folder} cannot be made: {problem.strerror}; name another with cache=DIR"
            ) from problem

    def get(self, key: str, layer_hash: str) -> Evaluation | None:
        """The evaluation that any run stored under that key."""
        return self._of(layer_hash).get(key)

    def add(self, evaluation: Evaluation) -> None:
        """Stores it for other runs, unless it failed: limits differ between runs."""
        if evaluation.failure is None:
            self._of(evaluation.layer_hash).add(evaluation)

    def _of(self, layer_hash: str) -> Record:
        if layer_hash not in self._records:
            self._records[layer_hash] = Record(self.folder / f"{layer_hash}.jsonl")
        record = self._records[layer_hash]
        record.refresh()
        return record


def parse(line: bytes | str, where: str) -> Any:
    """The JSON value of one stored line; raises BadInput, naming `where`, if there is none."""
    try:
        return json_value(line)
    except BadInput as problem:
        raise BadInput(f"{where}: {problem}") from problem


def json_value(line: bytes | str) -> Any:
    """The JSON value of one stored line; raises BadInput if there is none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as problem:
        raise BadInput(f"this is not JSON ({problem}); was it edited by hand?") from problem


def open_log(folder: RunFolder, purpose: str, way_out: str) -> Record:
    """The evaluation log of a run.

    Args:
        folder: the run's.
        purpose, way_out: end the sentence of the error, such as "to start from" and "name an earlier run".

    Raises:
        BadInput: there is none, or it is damaged.
    """
    path = folder.evaluations_file
    if not path.is_file():
        raise BadInput(f"{folder.path} holds no {path.name} {purpose}; {way_out}")
    return Record(path)
