"""Direct launches of Triton kernels equal Triton's own; the choice of configurations; tuning files.

Kernels are compiled for compute capability 9.0, and the C function that launches is replaced: no GPU is needed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from basis_search.families import kronecker, pq, stl
from basis_search.families.kronecker import kernels_triton as kronecker_triton
from basis_search.families.pq import kernels_triton as pq_triton
from basis_search.families.stl import kernels_triton as stl_triton
from basis_search.families.stl.bases import bases
from basis_search.layers.layer import LayerShape

pytest.importorskip("triton")

compiling = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter is on, which rules out compiling"
)
ROWS, SIDE = 48, 64


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, ...]]]:
    """What the C function was given by each launch, addresses in place of tensors."""
    from basis_kernels.launch.gpu import stub_driver

    seen: list[tuple[Any, ...]] = []

    def note(*arguments: Any) -> None:
        *before, given = arguments
        hooks = slice(8, 11)  # launch metadata and two hooks, which the direct launch leaves out
        seen.append((*before[: hooks.start], *before[hooks.stop + 2 :], tuple(map(_address, given))))

    monkeypatch.setattr(stub_driver._Utils, "launch", staticmethod(note))
    handles = iter(range(1000))
    monkeypatch.setattr(stub_driver._Utils, "load_binary", lambda *a: (1, next(handles), 0, 0, 1024))
    with stub_driver.stub_driver():
        yield seen


def _address(value: Any) -> Any:
    return value.data_ptr() if isinstance(value, Tensor) else value


def tiles(x: Tensor) -> Callable[[], Tensor]:
    spec = stl.Spec(4, 24)
    basis = bases(spec)
    params = {"weight": torch.randn(24, 16, 16), "encode": basis.encode, "decode": basis.decode}
    params = {name: value.to(x.dtype) for name, value in params.items()} | {"bias": torch.randn(SIDE)}
    return lambda: stl_triton.unfused(spec, {**params, "out_features": torch.tensor(SIDE)}, x)


def factors(text: str, fused: bool, x: Tensor) -> Callable[[], Tensor]:
    spec = kronecker.Spec(chain=text)
    params = kronecker.initialize(spec, LayerShape(*reversed(spec.parsed.shape)), bias=True, seed=0)
    packed = kronecker_triton.pack(spec, {k: v.to(x.dtype) if v.dim() else v for k, v in params.items()})
    return lambda: kronecker_triton.run("ieee", fused, spec, packed, x)


def tables(x: Tensor) -> Callable[[], Tensor]:
    spec = pq.Spec(8)
    params = {
        "split_columns": torch.randint(SIDE, (8, 4)).int(), "thresholds": torch.randn(8, 15),
        "table": torch.randint(256, (8, 16, SIDE)).to(torch.uint8),
        "scale": torch.rand(SIDE), "offset": torch.rand(SIDE),
    }  # fmt: skip
    packed = pq_triton.pack(spec, params)
    return lambda: pq_triton.run(spec, packed, x)


def inputs() -> dict[str, Tensor]:
    x = torch.randn(ROWS, 2 * SIDE + 1).bfloat16()
    return {
        "aligned": x[:, :SIDE].contiguous(),
        "one row": x[:1, :SIDE].contiguous(),
        "an odd number of rows": x[:47, :SIDE].contiguous(),
        "strided": x[:, :SIDE],
        "misaligned": x.flatten()[1 : 1 + ROWS * SIDE].view(ROWS, SIDE),
        "transposed": x[:, :SIDE].T.contiguous().T,
        "float32": x[:, :SIDE].float(),
    }


LAYERS: dict[str, Callable[[Tensor], Callable[[], Tensor]]] = {
    "stl": tiles,
    "kronecker": lambda x: factors("(1,16,16,4)*(4,16,16,1)", False, x),
    "monarch": lambda x: factors("(1,16,16,4)*(4,16,16,1)", True, x),
    "small blocks": lambda x: factors("(8,2,2,4)", False, x),
    "pq": tables,
}


def without_outputs(call: tuple[Any, ...]) -> tuple[Any, ...]:
    """A launch without the addresses of intermediate results and outputs, which differ from call to call."""
    return (*call[:-1], tuple(v for v in call[-1] if not (isinstance(v, int) and v > 1 << 32)))


@compiling
@pytest.mark.parametrize("name", LAYERS)
def test_a_direct_launch_is_tritons_own(name: str, launched: list[tuple[Any, ...]]) -> None:
    """The same kernel, grid, stream, integers and constants, for every kind of input that Triton tells apart."""
    from basis_kernels.launch.gpu import launching_by_triton

    known = inputs()
    if name not in ("stl", "pq"):
        known = {kind: known[kind] for kind in ("aligned", "an odd number of rows", "misaligned")}
    with torch.no_grad():
        calls = {kind: LAYERS[name](x) for kind, x in known.items()}
        for call in calls.values():  # the first call compiles, by Triton
            call()
        launched.clear()
        for kind, call in calls.items():
            call()
            direct = list(launched)
            launched.clear()
            with launching_by_triton():
                call()
            own = list(launched)
            launched.clear()
            assert [without_outputs(c) for c in direct] == [without_outputs(c) for c in own], kind
            assert direct[0][-1][0] == own[0][-1][0] == known[kind].data_ptr()


@compiling
def test_other_inputs_are_compiled_apart(launched: list[tuple[Any, ...]]) -> None:
    """A direct launch never takes a kernel compiled for aligned addresses or for sizes divisible by 16 for others."""
    from basis_kernels.stl import gpu

    basis = torch.randn(24, 16).bfloat16()
    x = torch.randn(33, 80).bfloat16()
    kinds = {
        "aligned": x[:32, :64].contiguous(),
        "odd": x[:31, :63].contiguous(),
        "misaligned": x.flatten()[1:2049].view(32, 64),
        "more rows": torch.cat([x, x, x])[:96, :64].contiguous(),
    }
    functions = {}
    for kind, given in kinds.items():
        for _ in range(2):
            gpu.encode(given, basis, 4)
        first, again = launched[-2:]
        assert without_outputs(first) == without_outputs(again)
        functions[kind] = first[4]
    assert functions["more rows"] == functions["aligned"]
    assert len(set(functions.values())) == 3


@compiling
def test_hooks_see_launches(launched: list[tuple[Any, ...]]) -> None:
    import triton

    names = []

    def hook(metadata: Any) -> None:
        names.append(metadata.get()["name"])

    call = tiles(torch.randn(ROWS, SIDE).bfloat16())
    with torch.no_grad():
        call()
        triton.knobs.runtime.launch_enter_hook.add(hook)
        try:
            count = len(launched)
            call()
        finally:
            triton.knobs.runtime.launch_enter_hook.remove(hook)
    assert len(launched) == count + 2  # the stub does not call the hook, but is given it by Triton's own launch


@compiling
def test_a_configuration_that_does_not_fit_the_chip_is_passed_over(
    launched: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from basis_kernels.launch.gpu import stub_driver
    from triton.runtime.errors import OutOfResources

    def chip(kib: int) -> None:
        monkeypatch.setattr("triton.compiler.compiler.max_shared_mem", lambda device: kib << 10)

    call = factors("(1,256,256,1)", False, torch.randn(4096, 256).bfloat16())
    chip(24)
    with torch.no_grad():
        with pytest.warns(UserWarning, match="kronecker.factor cannot run as .*OutOfResources.*the next"):
            call()
        count = len(launched)
        call()
        assert len(launched) == count + 1
        stub_driver.forget()
        chip(0)
        with pytest.raises(OutOfResources), pytest.warns(UserWarning, match="cannot run"):
            call()


@compiling
def test_another_triton_launches_itself(launched: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    from basis_kernels.launch.gpu import direct
    from basis_kernels.stl.gpu import encode

    assert direct.refusal() is None
    monkeypatch.setattr(direct, "CALL", "kernel.run(another, order)")
    direct.refusal.cache_clear()
    try:
        reason = direct.refusal()
    finally:
        direct.refusal.cache_clear()
    assert reason is not None
    assert "in another way" in reason
    launcher = sys.modules["basis_kernels.stl.gpu.encode"].launcher
    monkeypatch.setattr(launcher, "reason", reason)
    x, basis = torch.randn(32, 64), torch.randn(24, 16)
    for _ in range(3):
        encode(x, basis, 4)
    assert len(launched) == 3
    assert all(isinstance(call[-1][0], int) for call in launched)
    assert not any(bound.launches for bound in launcher.bounds)


class LauncherOf36:
    """Triton 3.6's launcher, as far as it matters here."""

    global_scratch_size = profile_scratch_size = 0
    launch_cooperative_grid, launch_pdl = False, True

    def __init__(self, seen: list[tuple[Any, ...]]):
        self.launch = lambda *arguments: seen.append(arguments)

    def __call__(self, gridX: int, gridY: int, gridZ: int, stream: int, function: int, *args: Any) -> None:
        global_scratch = profile_scratch = None
        self.launch(gridX, gridY, gridZ, stream, function, self.launch_cooperative_grid, self.launch_pdl,
                    global_scratch, profile_scratch, *args)  # fmt: skip


class UnknownLauncher(LauncherOf36):
    """One whose text is in no known version."""

    def __call__(self, *args: Any) -> None:
        self.launch(*args)


@compiling
@pytest.mark.parametrize("kind", [LauncherOf36, UnknownLauncher])
def test_launchers_of_other_versions_are_given_the_same(kind: type[LauncherOf36], launched: Any) -> None:
    from basis_kernels.launch.gpu.direct import Launch

    seen: list[tuple[Any, ...]] = []
    compiled = SimpleNamespace(run=kind(seen), function=7, packed_metadata=(4, 1, 0))
    launch = Launch(compiled, (5, 6), (9, "ieee"))
    launch(-1, [1024, 2048])
    compiled.run(5, 6, 1, 0, 7, (4, 1, 0), None, None, None, 1024, 2048, 9, "ieee")
    direct, own = seen
    assert direct == own
    assert (launch.run is compiled.run) == (kind is UnknownLauncher)


@pytest.mark.interpreted
def test_the_interpreter_runs_a_kernel_once_per_call(triton_device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from basis_kernels.launch.gpu import Launcher
    from basis_kernels.stl import gpu

    runs = []
    launch = Launcher._by_triton
    monkeypatch.setattr(Launcher, "_by_triton", lambda self, *call: runs.append(self) or launch(self, *call))
    x, basis = torch.randn(8, 36, device=triton_device), torch.randn(24, 16, device=triton_device)
    with torch.no_grad():
        for count in (1, 2, 3):
            gpu.encode(x, basis, 4)
            assert len(runs) == (count if triton_device == "cpu" else 1)


def a_problem(**values: Any) -> Any:
    from basis_kernels.launch.configuration import Problem

    return Problem("bfloat16", 2, {"rows": 8192, "K": 1024, "N": 2048, "R": 24, "T": 4, "PRECISION": "ieee"} | values)


def entry(rows: int, tiles: int, **exact: Any) -> dict[str, Any]:
    return {
        "kernel": "stl.encode",
        "exact": {"dtype": "bfloat16", "T": 4, "PRECISION": "ieee", **exact},
        "sizes": {"rows": rows, "K": 1024, "R": 24},
        "configuration": {"BT": tiles, "num_warps": 8 if tiles > 64 else 4, "num_stages": 3},
        "microseconds": 1.0,
    }


def test_the_nearest_tuned_problem_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from basis_kernels.launch import tuning_file
    from basis_kernels.launch.configuration import Hardware
    from basis_kernels.stl.gpu.tuning import ENCODE

    own, cache = tmp_path / "own", tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("BASIS_SEARCH_TUNING", str(own))
    own.mkdir()
    name = tuning_file.file_name("NVIDIA H200")
    assert name == "NVIDIA-H200.json"
    tuning_file.write(own / name, "NVIDIA H200", [entry(4096, 64), entry(16384, 128), entry(8192, 256, T=2)])

    def block(problem: Any) -> int | None:
        found = tuning_file.nearest(ENCODE, problem, "NVIDIA H200")
        return None if found is None else found[1].blocks["BT"]

    assert block(a_problem(rows=6000)) == 64
    assert block(a_problem(rows=15000)) == 128
    assert block(a_problem(rows=500)) is None  # more than four times as small
    assert block(a_problem(T=3)) is None
    assert tuning_file.nearest(ENCODE, a_problem(), "NVIDIA A100") is None
    tuning_file.write(tuning_file.user_folder() / name, "NVIDIA H200", [entry(500, 256)])
    assert block(a_problem(rows=500)) == 256  # of the user's folder, as the named one knows nothing near
    monkeypatch.setenv("BASIS_SEARCH_TUNING", "closed-form")
    assert block(a_problem()) is None
    few, many = (ENCODE.ranked(a_problem(N=n), Hardware())[0].blocks["BT"] for n in (4, 4096))
    assert few < many == 256  # narrow blocks occupy the processors where there are few tiles


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"format": 2, "entries": []}', '{"format": 1, "entries": [{"kernel": 1}]}']
)
def test_a_file_that_is_none_is_named(text: str, tmp_path: Path) -> None:
    from basis_kernels.launch import tuning_file

    path = tmp_path / "tuned.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"tuned\.json .*basis-search tune"):
        tuning_file.read(path)


@compiling
def test_a_tuner_takes_the_fastest_and_goes_on_where_it_was(
    launched: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from basis_kernels.launch.gpu import Tuner, stub_driver
    from basis_kernels.launch.gpu.tuner import OutOfTime

    path = tmp_path / "tuned.json"
    times = iter([4.0, 1.0, 3.0, 2.0])

    def seconds_of(call: Callable[[], object]) -> float:
        call()
        return next(times) * 1e-6

    from basis_kernels.stl import gpu

    x, basis = torch.randn(4096, 4096).bfloat16(), torch.randn(24, 16).bfloat16()
    tuner = Tuner(path, "made up", seconds_of)
    with tuner.running():
        gpu.encode(x, basis, 4)
    (stored,) = json.loads(path.read_text())["entries"]
    assert (stored["microseconds"], stored["closed_form_microseconds"]) == (1.0, 4.0)
    assert (tuner.measured, tuner.known, tuner.failures) == (1, 0, {})
    again = Tuner(path, "made up", seconds_of)  # `times` has no more
    with again.running():
        gpu.encode(x, basis, 4)
    assert (again.measured, again.known) == (0, 1)
    late = Tuner(path, "made up", seconds_of, limit=-1)
    with late.running(), pytest.raises(OutOfTime):
        gpu.encode(x[:64], basis, 4)
    monkeypatch.setattr("triton.compiler.compiler.max_shared_mem", lambda device: 24 << 10)
    stub_driver.forget()
    times = iter(range(1, 9))
    tuner = Tuner(path, "made up", seconds_of)
    call = factors("(1,256,256,1)", False, torch.randn(4096, 256).bfloat16())
    with torch.no_grad(), tuner.running():
        call()
    assert tuner.measured == 1
    assert tuner.failures
    assert all("shared memory" in reason for reason in tuner.failures.values())
