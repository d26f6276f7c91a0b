"""Fitted parameters of evaluations in memory: a temporary folder of this process, removed when it exits.

Plans of searches without a run folder find their parameters here. A file is removed with the last evaluation object
that it belongs to.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import tempfile
import threading
import weakref
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from basis_search.evaluation import fitted_store
from basis_search.evaluation.candidate import Evaluation
from basis_search.evaluation.fitted_store import SUFFIX, FittedStore


class TemporaryStore(FittedStore):
    """A store whose files live as long as the evaluations offered; another process opens it as a plain store."""

    def __init__(self) -> None:
        super().__init__(Path(tempfile.gettempdir()) / f"basis_search-{os.getpid()}-{secrets.token_hex(8)}")
        self._holders: Counter[str] = Counter()
        weakref.finalize(self, _remove_folder, self.folder, os.getpid())

    def __reduce__(self) -> tuple[Any, ...]:
        self._make_folder()
        return FittedStore, (self.folder, self.max_bytes)

    def draft(self, key: str) -> Path:
        """Where an evaluator writes them; threads may evaluate one candidate at the same time, for separate records."""
        self._make_folder()
        return self.folder / f".{key}.{os.getpid()}-{threading.get_ident()}{SUFFIX}"

    def offer(self, evaluations: Iterable[Evaluation]) -> None:
        """From now on `find` looks for their parameters here, as long as these evaluations exist."""
        for evaluation in evaluations:
            super().offer([evaluation])
            self._holders[evaluation.key] += 1
            weakref.finalize(evaluation, self._release, evaluation.key).atexit = False

    def _release(self, key: str) -> None:
        self._holders[key] -= 1
        if not self._holders[key]:
            del self._holders[key]
            fitted_store.withdraw(key, self)
            with contextlib.suppress(OSError):
                self.path(key).unlink()

    def _make_folder(self) -> None:
        with contextlib.suppress(OSError):  # writing the draft reports it
            self.folder.mkdir(mode=0o700, exist_ok=True)


def of_this_process() -> TemporaryStore:
    """The store that the records in memory of this process share."""
    return _of_process(os.getpid())


@functools.cache
def _of_process(pid: int) -> TemporaryStore:
    return TemporaryStore()


def _remove_folder(folder: Path, pid: int) -> None:
    if os.getpid() == pid:  # not at the exit of a fork
        shutil.rmtree(folder, ignore_errors=True)
