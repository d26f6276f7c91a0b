"""The compiled Strassen-Tile kernels against the reference: odd sizes, strides, dtypes, threads, edges."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from basis_search.families import stl
from basis_search.families.protocol import NOT_INSTALLED, relative_gap, tolerance
from basis_search.families.stl import kernels_cpu
from basis_search.families.stl.bases import bases
from basis_search.families.stl.reference import reference
from basis_search.layers.layer import Layer, LayerShape
from basis_search.schemes.programs.program import Program, Step, Term

SPECS = [
    stl.Spec(4, 24),
    stl.Spec(4, 47),
    stl.Spec(2, 5),
    stl.Spec(4, 49, "winograd2"),
    stl.Spec(4, 49, "strassen2"),
    stl.Spec(2, 7, "winograd"),
    stl.Spec(3, 23, "laderman"),
    stl.Spec(4, 32, "ternary"),
    stl.Spec(2, 5, "ternary-turned"),
    stl.Spec(4, 64, "standard"),
    stl.Spec(1, 1, "standard"),
    stl.Spec("2x4x4", 20),
    stl.Spec("4x2x4", 20),
    stl.Spec("4x4x2", 20),
    stl.Spec("4x4x8", 64),
    stl.Spec("4x8x4", 64),
    stl.Spec("8x4x4", 64),
    stl.Spec("1x2x3", 6, "standard"),
    stl.Spec("4x4x8", 128, "standard"),
]
KERNELS = [kernel for kernel in stl.KERNELS if kernel.name.startswith("cpu-")]


def random_params(spec, k, m, bias=True, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    (_, tk, tm), kept = spec.sides, bases(spec)
    params = {
        "weight": torch.randn(spec.rank, -(-k // tk), -(-m // tm), generator=g).to(dtype),
        "encode": kept.encode.to(dtype),
        "decode": kept.decode.to(dtype),
        "out_features": torch.tensor(m),
    }
    if bias:
        params["bias"] = torch.randn(m, generator=g).to(dtype)
    return params


def run(kernel, spec, params, x):
    reason = kernel.refuses(spec, LayerShape(x.shape[-1], int(params["out_features"]), 1, x.dtype, x.device))
    if reason == NOT_INSTALLED or (reason and "this CPU has no" in reason):
        pytest.skip(reason)
    assert reason is None
    return kernel.run(spec, kernel.pack(spec, params), x)


def check(kernel, spec, params, x):
    y = run(kernel, spec, params, x)
    expected = reference(spec, params, x)
    assert y.dtype == x.dtype
    assert y.shape == expected.shape
    # Element by element, against the sum of the absolute terms: cancellation in small outputs is allowed.
    terms = reference(spec, {name: value.abs() for name, value in params.items()}, x.abs())
    assert ((y.double() - expected).abs() <= tolerance(x.dtype, x.shape[-1] + spec.rank) * terms).all()


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_odd_sizes(kernel, spec, dtype, bias):
    for n, k, m in [(1, 1, 1), (3, 5, 7), (7, 33, 129), (16, 64, 64), (17, 127, 131), (31, 129, 35), (5, 260, 3)]:
        params = random_params(spec, k, m, bias, dtype, seed=n)
        check(kernel, spec, params, torch.randn(n, k, generator=torch.Generator().manual_seed(k)).to(dtype))


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides_offsets_and_batch_dimensions(kernel, dtype):
    spec, k, m = stl.Spec(4, 24), 37, 41
    params = random_params(spec, k, m, dtype=dtype)
    wide = torch.randn(20, 2 * k + 3).to(dtype)
    check(kernel, spec, params, wide[:, 3 : 3 + k])  # strided rows, unaligned
    check(kernel, spec, params, wide[:, ::2][:, :k])  # strided columns
    check(kernel, spec, params, torch.randn(k, 9).to(dtype).T)
    check(kernel, spec, params, torch.randn(2, 3, 5, k).to(dtype))
    check(kernel, spec, params, torch.randn(1, k).to(dtype).expand(6, k))
    assert run(kernel, spec, params, torch.empty(0, k, dtype=dtype)).shape == (0, m)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
@pytest.mark.parametrize("spec", [stl.Spec(4, 40), stl.Spec(2, 7, "winograd")], ids=str)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_panels_and_threads(kernel, spec, threads, monkeypatch):
    """Several panels, the last one smaller; any thread count gives the same result."""
    monkeypatch.setattr(kernels_cpu, "PANEL_BYTES", 1)
    monkeypatch.setattr(kernels_cpu, "LEAST_ROWS", 7)
    params = random_params(spec, 70, 46)
    x = torch.randn(93, 70)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        check(kernel, spec, params, x)
        torch.set_num_threads(1)
        alone = run(kernel, spec, params, x)
        torch.set_num_threads(threads)
        assert relative_gap(run(kernel, spec, params, x), alone) < 1e-6
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deep_and_wide_layers_go_in_several_passes(kernel, dtype):
    """More than 1024 tile columns of K and several strips of outputs, the last of both narrower."""
    for spec, k, m in ((stl.Spec(4, 24), 4 * 1100 + 3, 30), (stl.Spec(4, 47), 45, 4 * 170 + 1)):
        params = random_params(spec, k, m, dtype=dtype)
        check(kernel, spec, params, torch.randn(4 * 25 + 1, k).to(dtype))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux resets the high-water mark")
def test_extra_memory_is_at_most_the_encoded_inputs_and_outputs():
    """Of the default kernel at rank 24, in addition to the output, in a separate process."""
    if kernels_cpu._cpu is None:
        pytest.skip(NOT_INSTALLED)
    code = """
import re, torch
from pathlib import Path
from basis_search.families import stl
from basis_search.families.stl.bases import bases
from basis_search.families.protocol import choose
from basis_search.layers.layer import LayerShape
def status(field):
    return 1024 * int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
def run(size):
    spec, kept = stl.Spec(4, 24), bases(stl.Spec(4, 24))
    params = {"weight": torch.randn(24, size // 4, size // 4), "encode": kept.encode.float(),
              "decode": kept.decode.float(), "out_features": torch.tensor(size)}
    kernel = choose(stl.KERNELS, spec, LayerShape(size, size, size))
    packed, x = kernel.pack(spec, params), torch.randn(size, size)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    kernel.run(spec, packed, x)
    return status("VmHWM") - before
torch.set_num_threads(1)
run(64)
print(run(1024))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    output, encoded = 4 * 1024**2, 4 * 24 * 256**2
    assert output <= int(done.stdout) <= output + 2 * encoded, done.stdout


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_every_output_is_written_and_nan_stays_in_its_tile_row(kernel):
    spec, k, m = stl.Spec(4, 24), 21, 18
    params = random_params(spec, k, m)
    x = torch.randn(12, k)
    x[5, 20] = float("nan")
    y = run(kernel, spec, params, x)
    assert torch.isfinite(y[[0, 1, 2, 3, 8, 9, 10, 11]]).all()
    assert y[4:8].isnan().all()


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_bfloat16_is_rounded_once_at_the_end(kernel):
    """The arithmetic in between is float32: at most half a unit in the last place, except for ties."""
    spec = stl.Spec(4, 24)
    params = random_params(spec, 64, 64, dtype=torch.bfloat16)
    x = torch.randn(32, 64).bfloat16()
    y, expected = run(kernel, spec, params, x), reference(spec, params, x)
    spacing = 2.0 ** (expected.abs().log2().floor() - 7)
    assert ((y.double() - expected).abs() <= 0.5001 * spacing + 1e-4).all()


def test_trained_bases_of_an_exact_scheme_run_as_matrices():
    """Programs compute the scheme's original bases; trained ones must be used instead."""
    spec = stl.Spec(2, 7, "winograd")
    params = random_params(spec, 16, 16)
    if kernels_cpu._cpu is None:
        pytest.skip(NOT_INSTALLED)
    assert kernels_cpu.pack("scalar", spec, params).programs == (True, True)
    params["encode"] = params["encode"] + 0.25
    assert kernels_cpu.pack("scalar", spec, params).programs == (False, True)
    for kernel in KERNELS:
        check(kernel, spec, params, torch.randn(8, 16))


def test_refusals_name_the_reason():
    spec = stl.Spec(4, 24)
    for kernel in KERNELS:
        if kernels_cpu._cpu is not None:
            assert "float64" in kernel.refuses(spec, LayerShape(8, 8, 1, torch.float64))
            assert "torch kernel" in kernel.refuses(spec, LayerShape(8, 8, 1, torch.float32, torch.device("meta")))


def test_without_the_compiled_module_the_torch_kernel_runs(monkeypatch):
    monkeypatch.setattr(kernels_cpu, "_cpu", None)
    shape = LayerShape(8, 8)
    assert [k.name for k in stl.KERNELS if k.refuses(stl.Spec(), shape) is None] == ["reference", "torch"]
    assert KERNELS[0].refuses(stl.Spec(), shape) == NOT_INSTALLED


def test_a_fitted_exact_layer_is_the_dense_layer_in_float32():
    linear = torch.nn.Linear(200, 136)
    layer = Layer.from_linear(linear, torch.randn(40, 200))
    x = torch.randn(64, 200)
    expected = (x.double() @ linear.weight.double().T + linear.bias.double()).detach()
    for name, tile, rank in (("winograd", 2, 7), ("winograd2", 4, 49)):
        spec = stl.Spec(tile, rank, name)
        params = stl.fit(spec, layer)
        for kernel in KERNELS:
            assert relative_gap(run(kernel, spec, params, x), expected) < 1e-5


def test_signed_steps_pass_signs_on_to_the_outputs():
    program = Program(
        2,
        (Step(0, -1, 1, -1), Step(2, -1, 0, 1), Step(2, 1, 3, -1)),
        (Term(2, 1), Term(3, -1), Term(4, 1), Term(-1, 0)),
    )
    steps, ends = kernels_cpu.signed_steps(program)
    values = list(np.eye(2, dtype=int))
    for left, right, sign in steps:
        values.append(values[left] + sign * values[right])
    got = [0 * values[0] if value < 0 else sign * values[value] for value, sign in ends]
    assert np.array_equal(np.array(got), program.matrix().astype(int))
    with pytest.raises(ValueError, match="additions and subtractions"):
        kernels_cpu.signed_steps(Program(2, (Step(0, 2, 1, 1),), (Term(2, 1),)))
    with pytest.raises(ValueError, match="additions and subtractions"):
        kernels_cpu.signed_steps(Program(2, (Step(0, 1, 1, 1),), (Term(2, 2),)))
