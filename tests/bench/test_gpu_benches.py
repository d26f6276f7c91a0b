"""Tuning and the GPU benches' parts that need no GPU: what is refused, what is written when, block-sparse baselines."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from basis_search.bench import tune as tuning
from basis_search.bench.kronecker import gpu as kronecker_gpu
from basis_search.bench.launch import suite
from basis_search.bench.run_suite import run_suite
from basis_search.config import BenchConfig, TuneConfig
from basis_search.errors import BadInput


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"device": "cpu"}, "tune measures a GPU, not 'cpu'; use device=cuda"),
        ({"suite": "slt"}, "did you mean \"stl\"|did you mean 'stl'"),
        ({"dtype": "float64"}, "there is no dtype 'float64'"),
        ({"seconds": 0.0}, "seconds is 0.0, but a time above 0"),
    ],
)
def test_what_cannot_be_tuned_is_refused_in_one_sentence(setting: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        tuning.tune(TuneConfig(**setting))


def test_tuning_needs_a_gpu_and_shapes() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(BadInput, match="torch sees no CUDA device here"):
            tuning.tune(TuneConfig())
    for text in ("8x8", "0x8x8", "axbxc"):
        with pytest.raises(BadInput, match="write ROWSxINPUTSxOUTPUTS"):
            tuning._layer(text, torch.bfloat16, torch.device("cuda"))


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter is on, which rules out compiling"
)
def test_tuning_covers_all_families_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    importlib.import_module("basis_kernels.kronecker.gpu")
    importlib.import_module("basis_kernels.pq.gpu")
    importlib.import_module("basis_kernels.stl.gpu")
    from basis_kernels.launch.gpu import launcher
    from basis_kernels.launch.gpu.stub_driver import stub_driver

    chain, tree = tuning.kronecker.Spec(chain="(1,16,16,4)*(4,16,16,1)"), tuning.pq.Spec(16)
    monkeypatch.setattr(tuning, "_device", torch.device)
    monkeypatch.setattr(tuning.stl_gpu, "SPECS", tuning.stl_gpu.SPECS[:1])
    monkeypatch.setattr(tuning.kronecker, "examples", lambda shape: (chain,))
    monkeypatch.setattr(tuning.pq, "examples", lambda shape: (tree,))
    for one in launcher._launchers:
        least = min(one.space.candidates, key=one.space.smallest)  # the fastest to compile
        monkeypatch.setattr(one, "space", dataclasses.replace(one.space, candidates=(least,)))
    config = TuneConfig(device="cpu", shapes=["64x64x64"], out=str(tmp_path / "tuned.json"))

    def a_microsecond(call: Callable[[], object]) -> float:
        call()
        return 1e-6

    with stub_driver():
        done = tuning.tune(config, a_microsecond)
        again = tuning.tune(config, a_microsecond)
    entries = json.loads((tmp_path / "tuned.json").read_text())["entries"]
    kernels = {entry["kernel"] for entry in entries}
    assert kernels == {
        "stl.encode", "stl.decode", "stl.multiply_decode", "kronecker.factor", "kronecker.monarch", "pq.encode",
        "pq.sum_few",
    }  # fmt: skip
    fused = next(entry for entry in entries if entry["kernel"] == "stl.multiply_decode")
    assert fused["whole_microseconds"] == fused["other_microseconds"] == 1.0
    assert f"{len(entries)} problems measured, " in done
    assert "0 problems measured" in again


def test_rows_are_written_one_by_one_and_time_ends_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, written = tmp_path / "rows.json", []

    def part(device: str, threads: int, quick: bool = False) -> Iterator[dict[str, Any]]:
        for case in range(3):
            yield {"case": case, "quick": quick}
            written.append(len(json.loads(path.read_text())["rows"]))

    monkeypatch.setattr(suite, "PARTS", {"one": part})
    run_suite(BenchConfig(suite="launch", json=str(path), quick=True))
    assert written == [1, 2, 3]
    assert all(row["quick"] for row in json.loads(path.read_text())["rows"])
    run_suite(BenchConfig(suite="launch", json=str(path), seconds=1e-9))
    first, note = json.loads(path.read_text())["rows"]
    assert first == {"part": "one", "case": 0, "quick": False}
    assert "stopped after 1e-09 s" in note["case"]
    with pytest.raises(BadInput, match="seconds is -1"):
        run_suite(BenchConfig(suite="launch", seconds=-1))


@pytest.mark.parametrize(("n", "b", "c", "tile"), [(3, 4, 8, 4), (2, 8, 4, 4), (4, 4, 4, 4)])
def test_the_block_sparse_baseline_holds_the_blocks(n: int, b: int, c: int, tile: int) -> None:
    blocks = torch.randn(n, b, c)
    assert torch.equal(kronecker_gpu.block_diagonal(blocks, tile).to_dense(), torch.block_diag(*blocks))


def test_a_baseline_without_a_kernel_is_a_reason_in_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's errors are no RuntimeErrors."""
    pytest.importorskip("triton")
    from triton.runtime.errors import OutOfResources

    def fails() -> torch.Tensor:
        raise OutOfResources(1000, 100, "shared memory")

    def works() -> torch.Tensor:
        return torch.nn.functional.linear(x, torch.kron(w[0, :, :, 0], torch.eye(1)))

    w, x = torch.randn(1, 8, 8, 1), torch.randn(4, 8)
    monkeypatch.setattr(kronecker_gpu, "ours", lambda *a: [("triton", fails)])
    monkeypatch.setattr(kronecker_gpu, "baselines", lambda *a: [("dense", works), ("bsr", fails)])
    monkeypatch.setattr(kronecker_gpu, "measure", lambda *a, **k: pytest.fail("nothing of ours ran"))
    row = kronecker_gpu.one((1, 8, 8, 1), torch.float32, False, torch.device("cpu"), 4)
    assert "shared memory" in row["triton"]
    assert "shared memory" in row["bsr"]
    assert "none of our kernels runs" in row["failure"]
