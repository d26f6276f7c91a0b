"""Errors of a device: a candidate's failure, a process that is given up, or a device that is gone."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import pytest
import torch

import basis_search as bs
from basis_search.errors import BadInput
from basis_search.evaluation.device_errors import DeviceLost, PoisonedContext, failure
from basis_search.evaluation.evaluate import evaluate

if TYPE_CHECKING:
    from fake_cuda_devices import FakeCuda

pytestmark = pytest.mark.fast

ADVICE = "\nCUDA kernel errors might be asynchronously reported at some other API call.\nFor debugging consider ..."


def triton_errors() -> list[Exception]:
    compiler = pytest.importorskip("triton.compiler.errors")
    runtime = pytest.importorskip("triton.runtime.errors")
    return [
        runtime.OutOfResources(300_000, 232_448, "shared memory"),
        compiler.CompilationError("tl.dot(a, b)", ast.parse("tl.dot(a, b)").body[0], "shapes do not match"),
    ]


def test_errors_of_triton_are_failures_with_the_reason() -> None:
    resources, compilation = map(failure, triton_errors())
    assert resources is not None
    assert "Hardware limit: 232448" in resources
    assert compilation is not None
    assert compilation.endswith("shapes do not match")


def test_a_lack_of_memory_names_what_was_asked_for() -> None:
    message = (
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 5.25 GiB is "
        "free. Including non-PyTorch memory, this process has 73.00 GiB memory in use."
    )
    assert failure(torch.OutOfMemoryError(message)) == (
        "the GPU's memory ran out: 20.00 GiB were asked for, where 5.25 GiB of the GPU's 79.10 GiB were free"
    )


@pytest.mark.parametrize(
    "message",
    ["CUDA error: an illegal memory access was encountered", "CUDA error: device-side assert triggered",
     "CUDA error: unspecified launch failure", "Triton Error [CUDA]: misaligned address"],
)  # fmt: skip
def test_an_error_that_poisons_the_context_ends_the_process(message: str) -> None:
    with pytest.raises(PoisonedContext, match="subprocess_evaluator") as caught:
        failure(RuntimeError(message + ADVICE))
    assert caught.value.reason == f"RuntimeError: {message}"


@pytest.mark.parametrize(
    "message",
    ["CUDA error: no CUDA-capable device is detected", "No CUDA GPUs are available", "CUDA error: device lost",
     "NVML: GPU is lost"],
)  # fmt: skip
def test_a_device_that_is_gone_ends_the_search(message: str) -> None:
    with pytest.raises(DeviceLost, match=r"all evaluations so far are recorded.*the same command"):
        failure(RuntimeError(message))


def test_failures_of_a_candidate_and_errors_of_the_program() -> None:
    assert failure(BadInput("rank is 9, but at most 8 is possible; no CUDA GPUs are available")) is not None
    assert failure(ZeroDivisionError("division by zero")) == "ZeroDivisionError: division by zero"
    assert failure(AttributeError("no attribute")) is None


@pytest.mark.slow
def test_a_fit_beyond_the_memory_fails_or_goes_to_the_cpu(
    fake_cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under the double, which raises as the allocator does; what follows is fitted as before."""
    fit = bs.lowrank.fit

    def greedy(spec: bs.lowrank.Spec, layer: bs.Layer) -> dict[str, torch.Tensor]:
        if spec.rank == 1 and layer.device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ...")
        return fit(spec, layer)

    monkeypatch.setattr(bs.lowrank, "fit", greedy)
    layer = bs.Layer.from_linear(torch.nn.Linear(8, 8), torch.randn(32, 8), "fc", batch=8).to("cuda")
    failed = evaluate(layer, "lowrank", bs.lowrank.Spec(1))
    assert failed.failure == "the GPU's memory ran out: 20.00 GiB were asked for"
    found = evaluate(layer, "lowrank", bs.lowrank.Spec(1), fit_on_cpu=True)
    assert (found.failure, found.device.is_gpu) == (None, True)
    assert "the fit of lowrank {'rank': 1} to 'fc' goes to the CPU: the GPU's memory ran out" in capsys.readouterr().err
    assert evaluate(layer, "lowrank", bs.lowrank.Spec(2)).failure is None


@pytest.mark.slow
def test_a_search_in_this_process_ends_where_its_context_is_of_no_use(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(spec: bs.lowrank.Spec, layer: bs.Layer) -> dict[str, torch.Tensor]:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(bs.lowrank, "fit", broken)
    layer = bs.Layer.from_linear(torch.nn.Linear(8, 8), torch.randn(32, 8), "fc", batch=8)
    record = bs.Record()
    with pytest.raises(PoisonedContext, match=r"device-side assert triggered.*SubprocessEvaluator\(\)"):
        bs.search(layer, ("dense", "lowrank"), 2, record=record)
    assert [e.candidate.family for e in record] == ["dense"]
