"""Evaluate candidates in a child process with a time and a memory limit; beyond them an evaluation fails.

The child is started once and reads a line of JSON per evaluation; layers reach it as safetensors. It dies with its
parent. One whose CUDA context a candidate made unusable is ended, and another one started.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError

from basis_search.errors import BadInput
from basis_search.evaluation import timing
from basis_search.evaluation.candidate import Candidate, Evaluation, failed
from basis_search.evaluation.code_version import code_version
from basis_search.evaluation.device_errors import DeviceLost, PoisonedContext, described, is_out_of_memory
from basis_search.evaluation.evaluate import evaluate
from basis_search.families import family as family_named
from basis_search.families.protocol import spec_from_json, spec_to_json
from basis_search.layers.collection import Layers
from basis_search.layers.layer import Layer

POLL_SECONDS = 0.05
START_SECONDS = 120.0
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class SubprocessEvaluator:
    """`evaluate` in a child process; a context manager, which ends the child.

    Args:
        seconds: time limit of one evaluation, not counting the wait for a device on which another process measures.
        gibibytes: limit of the child's resident memory. None sets no limit, for either.
        fit_on_cpu: repeat a fit on the CPU for which the GPU has too little memory.
    """

    def __init__(self, seconds: float | None = None, gibibytes: float | None = None, *, fit_on_cpu: bool = False):
        self.seconds, self.gibibytes, self.fit_on_cpu = seconds, gibibytes, fit_on_cpu
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._buffer = b""
        self._layer = ""  # content hash of the one that the child holds
        self._folder: Path | None = None

    def __enter__(self) -> SubprocessEvaluator:
        self._start()  # it imports torch while the caller prepares the rest
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the child."""
        self._end()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def __call__(
        self, layer: Layer, family: str, spec: Any, *, threads: int = 1, twin: Evaluation | None = None, **options: Any
    ) -> Evaluation:
        """The candidate's evaluation; `options` are those of `evaluate` that are JSON values.

        Raises:
            DeviceLost: the layer's GPU is gone.
        """
        self._send_layer(layer)
        request = {
            "family": family,
            "spec": spec_to_json(spec),
            "options": {"threads": threads, "fit_on_cpu": self.fit_on_cpu, **options},
            "twin": None if twin is None else twin.to_json(),
        }
        self._send(request)
        answer = self._answer(self.seconds, self.gibibytes)
        if isinstance(answer, str):
            return failed(layer, Candidate(layer.name, family, spec), answer, threads=threads)
        if "evaluation" in answer:
            return Evaluation.from_json(answer["evaluation"])
        if "lost" in answer:
            raise DeviceLost(answer["lost"])
        if answer["unusable"]:
            self._end()
            self._send_layer(layer)  # if the device is gone, this raises, and the candidate is not blamed for it
        return failed(layer, Candidate(layer.name, family, spec), answer["failure"], threads=threads)

    def _send_layer(self, layer: Layer) -> None:
        if self._process is None:
            self._start()
        if not self._ready:
            answer = self._answer(START_SECONDS, None)
            if isinstance(answer, str):
                raise RuntimeError(f"the process that evaluates candidates did not start: {answer}")
            if answer["code"] != code_version():
                raise BadInput(
                    f"the process that evaluates candidates runs basis_search {answer['code']}, not {code_version()} "
                    "as this one: the sources were edited since it began, or two copies are installed; start it again, "
                    "or see which one `python -c 'import basis_search; print(basis_search)'` names"
                )
            self._ready = True
        if self._layer == layer.content_hash:
            return
        memory = Path("/dev/shm")
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))
        for path in self._folder.iterdir():
            path.unlink()
        try:
            Layers((layer,)).save(self._folder)
        except (OSError, SafetensorError) as problem:
            raise BadInput(
                f"the layer {layer.name!r} cannot be written for the process that evaluates it: {problem}; free space "
                f"in {self._folder.parent}"
            ) from problem
        self._send({"layer": str(self._folder), "device": str(layer.device)})
        answer = self._answer(None, None)
        if isinstance(answer, str):
            raise RuntimeError(f"the process that evaluates candidates did not take the layer {layer.name!r}: {answer}")
        if "lost" in answer:
            raise DeviceLost(answer["lost"])
        self._layer = layer.content_hash

    def _start(self) -> None:
        flags = ["-S"] if sys.flags.no_site else []  # else it might import another copy of this package
        command = [sys.executable, *flags, "-m", "basis_search.workers.subprocess_evaluator", str(os.getpid())]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self._ready, self._buffer, self._layer = False, b"", ""

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        line = json.dumps(request, allow_nan=False).encode() + b"\n"
        with contextlib.suppress(BrokenPipeError):  # it died, which the answer reports
            while line:
                line = line[self._process.stdin.write(line) or 0 :]

    def _answer(self, seconds: float | None, gibibytes: float | None) -> dict[str, Any] | str:
        """The child's answer; a sentence where it exceeded a limit or died, and then the child is gone."""
        assert self._process is not None
        assert self._process.stdout is not None
        spent, before, waits = 0.0, time.monotonic(), False
        while True:
            while b"\n" in self._buffer:
                line, _, self._buffer = self._buffer.partition(b"\n")
                answer = json.loads(line)
                if "waits" not in answer:
                    return dict(answer)
                waits = answer["waits"]
            readable, _, _ = select.select([self._process.stdout], [], [], POLL_SECONDS)
            now = time.monotonic()
            spent, before = spent + (0.0 if waits else now - before), now
            if readable:
                received = self._process.stdout.read(1 << 20)
                if not received:
                    return self._cause_of_death()
                self._buffer += received
            elif seconds is not None and spent > seconds:
                self._end()
                return f"it took longer than {seconds:g} s, the limit of one evaluation (trial_seconds)"
            elif gibibytes is not None and _resident(self._process.pid) > gibibytes * 2**30:
                self._end()
                return f"it took more than {gibibytes:g} GiB of memory, the limit of one evaluation (trial_memory)"

    def _cause_of_death(self) -> str:
        assert self._process is not None
        status = self._process.wait()
        self._end()
        if status >= 0:
            return f"the process that evaluated it ended with status {status}"
        name = signal.Signals(-status).name
        hint = "; the system does so where memory runs out" if -status == signal.SIGKILL else ""
        return f"the process that evaluated it was ended by {name}{hint}"


def _resident(pid: int) -> int:
    """Bytes of memory that a process holds; 0 where it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * PAGE_BYTES
    except (OSError, IndexError):
        return 0


def main(parent: int) -> None:
    """The child: reads requests from standard input, answers on what was standard output."""
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    with contextlib.suppress(OSError):  # where memory runs out, this process goes and not the worker
        Path("/proc/self/oom_score_adj").write_text("1000")
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # so that nothing that a library prints is taken for an answer

    def answer(message: dict[str, Any]) -> None:
        out.write(json.dumps(message, allow_nan=False).encode() + b"\n")

    timing.device_wait_listeners.append(lambda waits: answer({"waits": waits}))
    layer: Layer | None = None
    answer({"code": code_version()})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if "layer" in request:
            device = torch.device(request["device"])
            layer = dataclasses.replace(next(iter(Layers.load(request["layer"]))), device=device)
            answer(_first_use(device) or {"layer": layer.content_hash})
        else:
            assert layer is not None
            answer(_evaluated(layer, request))


def _first_use(device: torch.device) -> dict[str, Any] | None:
    """The answer where the device does not work in this new process; None where it does, or is only full."""
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as problem:
        return None if is_out_of_memory(problem) else {"lost": described(problem)}
    return None


def _evaluated(layer: Layer, request: dict[str, Any]) -> dict[str, Any]:
    """The answer: an evaluation, why there is none and whether this process is of no more use, or a lost device."""
    family, options = request["family"], request["options"]
    spec = spec_from_json(family_named(family), request["spec"])
    twin = None if request["twin"] is None else Evaluation.from_json(request["twin"])
    try:
        return {"evaluation": evaluate(layer, family, spec, twin=twin, **options).to_json()}
    except DeviceLost as problem:
        return {"lost": problem.reason}
    except PoisonedContext as problem:
        return {"failure": problem.reason, "unusable": True}
    except Exception as problem:  # a candidate may raise anything; the worker lives on and reports it
        return {"failure": described(problem), "unusable": False}


def _die_with(parent: int) -> None:
    """Ends this process with its parent, also in the middle of an evaluation (Linux)."""
    prctl: Callable[..., int] | None = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
