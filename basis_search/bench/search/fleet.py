"""Worker processes of one search, started by the command line, and the layer that they search."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from basis_search.files import new_lines
from basis_search.layers.collection import Layers
from basis_search.layers.layer import Layer
from basis_search.run.search_run import open_record
from basis_search.study import optuna_storage
from basis_search.workers.evaluation_log import Record
from basis_search.workers.run_folder import RunFolder


def correlated(out: int, features: int, batch: int, samples: int = 1024, seed: int = 0) -> Layer:
    """A random layer [out, features] under inputs whose features are mixed."""
    torch.manual_seed(seed)
    mixing = torch.randn(features, features) / features**0.5
    return Layer.from_linear(
        torch.nn.Linear(features, out), torch.randn(samples, features) @ mixing, "layer", batch=batch
    )


class Fleet:
    """Worker processes of one search, started by the command line, in a new run folder.

    Args:
        place: "journal" or "postgresql".
        options: overrides of `basis-search search`.
        own_clock: does not wait for measurements of other searches on this machine.
    """

    def __init__(self, folder: Path, layer: Layer, place: str, *options: str, own_clock: bool = False):
        self.run = folder / f"run-{uuid.uuid4().hex[:8]}"
        layers = folder / "layers"
        if not layers.exists():
            Layers((layer,)).save(layers)
        self._command = [sys.executable, "-m", "basis_search.cli", "search", f"layers={layers}", f"run={self.run}",
                         "report=false", "export=false", "budgets={flops:[],latency:[]}", *options]  # fmt: skip
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if own_clock:
            self._environment["TMPDIR"] = str(folder)  # the folder of the clock's lock
        if place == "journal":
            self._environment.pop(optuna_storage.ENVIRONMENT, None)
        self.location = (
            RunFolder(self.run).studies_file if place == "journal" else os.environ[optuna_storage.ENVIRONMENT]
        )
        self._numbers = iter(range(10**6))
        self.workers: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Starts one more worker."""
        log = (self.run.parent / "log").open("ab")
        command = [*self._command, f"worker={next(self._numbers)}"]
        self.workers.append(subprocess.Popen(command, env=self._environment, stdout=log, stderr=log))
        log.close()

    def wait(self, seconds: float = 3600) -> None:
        """Waits until all have ended; raises RuntimeError with the log's tail if one failed."""
        for worker in self.workers:
            if worker.wait(seconds) != 0:
                raise RuntimeError(f"a worker ended with {worker.returncode}: {self.log()[-2000:]}")

    def log(self) -> str:
        return (self.run.parent / "log").read_text()

    def record(self) -> Record:
        """The stored evaluations, read anew."""
        return open_record(self.run, self.location)

    def lines(self) -> list[dict[str, Any]]:
        """The lines of the run's evaluation log."""
        return [json.loads(line) for line in new_lines(RunFolder(self.run).evaluations_file)[0]]

    def stop(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait()


@contextmanager
def fleet(layer: Layer, place: str, *options: str, own_clock: bool = False) -> Iterator[Fleet]:
    """A Fleet in a temporary folder; on exit its workers are killed and the folder is removed."""
    with tempfile.TemporaryDirectory() as folder:
        made = Fleet(Path(folder), layer, place, *options, own_clock=own_clock)
        try:
            yield made
        finally:
            made.stop()
