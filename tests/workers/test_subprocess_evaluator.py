"""Evaluations in a child process: the same numbers, and limits that end a candidate but not the worker."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import basis_search as bs
from basis_search.evaluation.device_errors import DeviceLost
from basis_search.evaluation.evaluate import evaluate
from basis_search.workers import subprocess_evaluator
from basis_search.workers.subprocess_evaluator import SubprocessEvaluator

PYTHON = [sys.executable, *(["-S"] if sys.flags.no_site else [])]  # with the same copy of the package
SPEC = bs.lowrank.Spec(rank=4)


def a_layer(name: str = "fc", out: int = 32) -> bs.Layer:
    torch.manual_seed(0)
    return bs.Layer.from_linear(torch.nn.Linear(32, out), torch.randn(96, 32), name, batch=16)


def test_a_child_finds_what_this_process_finds_and_takes_one_layer_after_another() -> None:
    with subprocess_evaluator.SubprocessEvaluator() as evaluator:
        for layer in (a_layer(), a_layer("other", 48), a_layer()):
            there, here = evaluator(layer, "lowrank", SPEC), evaluate(layer, "lowrank", SPEC)
            assert there.failure is None
            assert there.key == here.key
            assert there.cost == here.cost
            assert there.error == pytest.approx(here.error, rel=1e-6)
            twin = evaluator(layer, "lowrank", SPEC, twin=there)
            assert (twin.latency, twin.latency_ratio) == (there.latency, there.latency_ratio)


def test_beyond_the_time_limit_is_a_failure_with_the_reason_and_the_next_one_goes_on() -> None:
    layer = a_layer()
    with subprocess_evaluator.SubprocessEvaluator(seconds=1e-9) as evaluator:
        found = evaluator(layer, "lowrank", SPEC)
        assert found.failure == "it took longer than 1e-09 s, the limit of one evaluation (trial_seconds)"
        assert found.key == evaluate(layer, "lowrank", SPEC).key
        evaluator.seconds = None
        assert evaluator(layer, "lowrank", SPEC).failure is None


def test_beyond_the_memory_limit_is_a_failure_with_the_reason() -> None:
    with subprocess_evaluator.SubprocessEvaluator(gibibytes=0.01) as evaluator:
        assert (
            evaluator(a_layer(), "lowrank", SPEC).failure
            == "it took more than 0.01 GiB of memory, the limit of one evaluation (trial_memory)"
        )
        evaluator.gibibytes = None
        assert evaluator(a_layer(), "lowrank", SPEC).failure is None


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (signal.SIGSEGV, "the process that evaluated it was ended by SIGSEGV"),
        (signal.SIGKILL, "was ended by SIGKILL; the system does so where memory runs out"),
    ],
)
def test_a_candidate_that_ends_its_process_is_a_failure(number: signal.Signals, sentence: str) -> None:
    layer = a_layer()
    with subprocess_evaluator.SubprocessEvaluator() as evaluator:
        assert evaluator(layer, "lowrank", SPEC).failure is None
        assert evaluator._process is not None
        evaluator._process.send_signal(signal.SIGSTOP)  # so that it is evaluating when the signal comes
        os.kill(evaluator._process.pid, number)
        os.kill(evaluator._process.pid, signal.SIGCONT)
        assert sentence in (evaluator(layer, "lowrank", SPEC).failure or "")
        assert evaluator(layer, "lowrank", SPEC).failure is None


def test_any_exception_of_a_candidate_is_a_failure() -> None:
    with subprocess_evaluator.SubprocessEvaluator() as evaluator:
        found = evaluator(a_layer(), "lowrank", SPEC, seconds="soon")
        assert found.failure is not None
        assert found.failure.startswith("TypeError: ")


def test_waiting_for_the_device_does_not_count() -> None:
    """A limit of a second and a half, and a device that another process holds for two seconds."""
    holder = (
        "import time, torch; from basis_search.evaluation.timing import exclusive_device\n"
        "with exclusive_device(torch.device('cpu')):\n"
        " print(0, flush=True); time.sleep(2); print(time.monotonic(), flush=True)"
    )
    with subprocess_evaluator.SubprocessEvaluator() as evaluator:
        assert evaluator(a_layer(), "dense", bs.dense.Spec()).failure is None
        evaluator.seconds = 1.5
        with subprocess.Popen([*PYTHON, "-c", holder], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            assert evaluator(a_layer(), "dense", bs.dense.Spec()).failure is None
            assert time.monotonic() > float(process.stdout.readline()), "it was measured while the device was another's"


def test_the_child_dies_with_its_parent() -> None:
    code = (
        "import time; from basis_search.workers.subprocess_evaluator import SubprocessEvaluator\n"
        "child = SubprocessEvaluator(); child._start(); print(child._process.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([*PYTHON, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        parent.kill()
    deadline = time.monotonic() + 60  # a child that is still importing notices afterwards
    while time.monotonic() < deadline:
        if not _lives(pid):
            return
        time.sleep(0.02)
    pytest.fail("the child outlived its parent")


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


def test_a_layer_reaches_the_child_as_it_is() -> None:
    layer = dataclasses.replace(a_layer(), sensitivity=3.5)
    with subprocess_evaluator.SubprocessEvaluator() as evaluator:
        found = evaluator(layer, "dense", bs.dense.Spec())
    assert found.sensitivity == 3.5
    assert found.layer_hash == layer.content_hash


CHILD = """
import sys
from basis_search.workers import subprocess_evaluator as module
real = module.evaluate

def evaluate(layer, family, spec, **options):
    if family == "lowrank" and spec.rank == 1:
        {raising}
    return real(layer, family, spec, **options)

module.evaluate = evaluate
module.main(int(sys.argv[1]))
"""


def evaluator_of(monkeypatch: pytest.MonkeyPatch, error: str) -> SubprocessEvaluator:
    """One whose child raises that error for lowrank's rank 1, as the correctness check on a GPU would."""
    raising = "from basis_search.evaluation.device_errors import failure; failure(RuntimeError('" + error + "'))"
    code, popen = CHILD.format(raising=raising), subprocess.Popen

    def started(command: list[str], **pipes: Any) -> Any:
        return popen([*command[: command.index("-m")], "-c", code, command[-1]], **pipes)

    monkeypatch.setattr(subprocess_evaluator.subprocess, "Popen", started)
    return SubprocessEvaluator()


def test_after_an_illegal_access_another_child_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = a_layer()
    with evaluator_of(monkeypatch, "CUDA error: an illegal memory access was encountered") as evaluator:
        assert evaluator(layer, "lowrank", SPEC).failure is None
        first = evaluator._process
        failure = evaluator(layer, "lowrank", bs.lowrank.Spec(rank=1)).failure
        assert failure == "RuntimeError: CUDA error: an illegal memory access was encountered"
        assert evaluator._process is not first
        assert evaluator(layer, "lowrank", SPEC).failure is None


def test_a_lost_device_ends_the_search_and_the_record_is_intact(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    layer, path = a_layer(), tmp_path / "evaluations.jsonl"
    space = {"lowrank": bs.lowrank.Space(step=1, highest=2)}
    lost = evaluator_of(monkeypatch, "CUDA error: no CUDA-capable device is detected")
    with lost as evaluator, pytest.raises(DeviceLost, match="give the same command to go on"):
        bs.search(
            layer, ("dense", "lowrank"), 2, spaces=space, record=bs.Record(path), judge=evaluator, sampler="random"
        )
    record = bs.Record(path)
    assert len(record) >= 1
    assert all(e.failure is None for e in record), "no candidate is to blame"
    monkeypatch.undo()
    bs.search(layer, ("dense", "lowrank"), 2, spaces=space, record=record, sampler="random")
    assert len([e for e in record if e.candidate.family == "lowrank" and e.failure is None]) == 2
