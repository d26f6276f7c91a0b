"""Triton kernels of Strassen-Tile layers: forward and backward against the reference; compilation for three GPUs."""

from __future__ import annotations

import pytest
import torch

from basis_search.families import stl
from basis_search.families.protocol import relative_gap, tolerance
from basis_search.families.stl import kernels_triton
from basis_search.families.stl.bases import bases
from basis_search.families.stl.reference import reference
from basis_search.layers.layer import LayerShape

pytest.importorskip("triton")

SPECS = [
    stl.Spec(4, 24),
    stl.Spec(4, 49, "winograd2"),
    stl.Spec(2, 7, "winograd"),
    stl.Spec(2, 5),
    stl.Spec(3, 23, "laderman"),
    stl.Spec(1, 1, "standard"),
]
RUNS = {"triton": kernels_triton.unfused, "triton-fused": kernels_triton.fused}


def random_params(spec, k, m, dtype, device, bias=True):
    g = torch.Generator().manual_seed(k + m)
    t, kept = spec.tile, bases(spec)
    weight = torch.randn(spec.rank, -(-k // t), -(-m // t), generator=g) / k**0.5
    params = {"weight": weight, "encode": kept.encode, "decode": kept.decode}
    if bias:
        params["bias"] = torch.randn(m, generator=g)
    params = {name: value.to(device, dtype) for name, value in params.items()}
    return {**params, "out_features": torch.tensor(m)}


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch before 2.9")
def test_tf32_that_a_program_allows_by_the_newer_name_is_used():
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    try:
        settings.fp32_precision = "tf32"
        assert kernels_triton._precision(torch.ones(1)) == "tf32"
        assert kernels_triton._precision(torch.ones(1, dtype=torch.bfloat16)) == "ieee"
    finally:
        settings.fp32_precision = before


def dtypes(device):
    """The interpreter multiplies the bit patterns of bfloat16."""
    return (torch.float32, torch.float16, torch.bfloat16) if device == "cuda" else (torch.float32, torch.float16)


@pytest.mark.interpreted
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_forward_at_odd_sizes(name, spec, triton_device):
    for dtype in dtypes(triton_device):
        for n, k, m in [(1, 1, 1), (7, 33, 81), (16, 64, 64), (33, 70, 35)]:
            params = random_params(spec, k, m, dtype, triton_device, bias=n != 7)
            x = torch.randn(n, k, generator=torch.Generator().manual_seed(n)).to(triton_device, dtype)
            y, expected = RUNS[name](spec, params, x), reference(spec, params, x)
            assert y.dtype == dtype
            assert y.shape == expected.shape
            absolute = {key: value.abs() for key, value in params.items()}
            terms = reference(spec, absolute, x.abs())  # element by element, against the sum of the absolute terms
            assert ((y.double() - expected).abs() <= tolerance(dtype, k + spec.rank) * terms + 1e-7).all()


@pytest.mark.interpreted
@pytest.mark.parametrize("name", RUNS)
def test_strides_batch_dimensions_and_no_rows(name, triton_device):
    spec = stl.Spec(4, 24)
    params = random_params(spec, 37, 41, torch.float32, triton_device)
    wide = torch.randn(20, 77).to(triton_device)
    for x in (
        wide[:, 3:40],
        wide[:, ::2][:, :37],
        torch.randn(37, 9).to(triton_device).T,
        wide[:, :37].view(2, 10, 37),
    ):
        y, expected = RUNS[name](spec, params, x), reference(spec, params, x)
        assert y.shape == expected.shape
        assert relative_gap(y, expected) < 1e-6
    assert RUNS[name](spec, params, torch.empty(0, 37, device=triton_device)).shape == (0, 41)


@pytest.mark.interpreted
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("spec", [SPECS[0], SPECS[2], SPECS[4]], ids=str)
@pytest.mark.parametrize("trained", [("weight",), ("encode", "decode"), ("weight", "encode", "decode", "bias", "x")])
def test_gradients_are_those_of_the_reference(name, spec, trained, triton_device):
    n, k, m = 18, 21, 26
    params = random_params(spec, k, m, torch.float32, triton_device)
    x = torch.randn(n, k, generator=torch.Generator().manual_seed(0)).to(triton_device)
    push = torch.randn(n, m, generator=torch.Generator().manual_seed(1)).to(triton_device)

    def gradients(run, dtype):
        own = {key: value.to(dtype) if value.is_floating_point() else value for key, value in params.items()}
        own["x"] = x.to(dtype)
        leaves = [own[key].clone().requires_grad_() for key in trained]
        own.update(zip(trained, leaves, strict=True))
        inputs = own.pop("x")
        return torch.autograd.grad(run(spec, own, inputs), leaves, push.to(dtype))

    expected = gradients(reference, torch.float64)
    for key, got, want in zip(trained, gradients(RUNS[name], torch.float32), expected, strict=True):
        assert relative_gap(got, want) < 2e-6, key


@pytest.mark.interpreted
def test_fused_and_unfused_kernels_round_alike(triton_device):
    """The fused kernel keeps products in float32, so it is nearer to the reference than the unfused one."""
    spec = stl.Spec(4, 24)
    params = random_params(spec, 96, 64, torch.float16, triton_device)
    x = torch.randn(64, 96, generator=torch.Generator().manual_seed(2)).to(triton_device, torch.float16)
    gaps = {name: relative_gap(run(spec, params, x), reference(spec, params, x)) for name, run in RUNS.items()}
    assert gaps["triton-fused"] < gaps["triton"] < 4e-3


def test_refusals_name_the_reason():
    spec = stl.Spec(4, 24)
    cuda = torch.device("cuda")
    assert "runs on CUDA" in kernels_triton.refuses(spec, LayerShape(8, 8, 1))
    assert "float64" in kernels_triton.refuses(spec, LayerShape(8, 8, 1, torch.float64, cuda))


def compiled(kernel, config, capability, dtype, tile, rank, precision="ieee"):
    from triton_ahead import compile_ahead

    pointers = dict.fromkeys(("x", "z", "w", "s", "basis", "bias", "y"), dtype) | {"partial": "*fp32"}
    values = {"T": tile, "PRECISION": precision, "RP": rank, "AP": 16, "HAS_BIAS": True, **config.blocks}
    names = kernel.arg_names
    return compile_ahead(
        kernel,
        {name: pointers.get(name, "i32") for name in names if name not in values},
        {name: value for name, value in values.items() if name in names},
        capability,
        config.num_warps,
        config.num_stages,
    )


def checked(kernel, config, capability, dtype, tile, rank, precision="ieee"):
    made = compiled(kernel, config, capability, dtype, tile, rank, precision)
    assert made.tensor_cores
    assert made.spills == 0, (config, made.registers)


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("rank", [32, 64])
def test_encode_decode_and_gradients_compile_without_spills(capability, rank):
    from basis_kernels.stl.gpu import tuning
    from basis_kernels.stl.gpu.decode import decode_kernel
    from basis_kernels.stl.gpu.encode import encode_kernel
    from basis_kernels.stl.gpu.gradient import gradient_kernel

    for kernel in (encode_kernel, decode_kernel):
        checked(kernel, tuning.TILES[0], capability, "*bf16", 4, rank)
    checked(gradient_kernel, tuning.SUMMED[0], capability, "*bf16", 4, rank)
    if capability == 90:
        checked(encode_kernel, tuning.TILES[1], capability, "*fp32", 4, rank, "tf32")
        checked(decode_kernel, tuning.TILES[1], capability, "*fp16", 2, rank)
        checked(gradient_kernel, tuning.SUMMED[1], capability, "*fp32", 4, rank, "tf32")


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_every_block_size_of_the_fused_kernel_compiles_without_spills(capability):
    from basis_kernels.launch.configuration import Problem
    from basis_kernels.stl.gpu import tuning
    from basis_kernels.stl.gpu.fused import fused_kernel

    def fitting(size: int):
        return [c for c in tuning.PRODUCTS if tuning.fits_products(c, Problem("", size, {"T": 4}))]

    for config in fitting(2):
        checked(fused_kernel, config, capability, "*bf16", 4, 32)
    if capability == 90:
        for config in fitting(4):
            checked(fused_kernel, config, capability, "*fp32", 4, 32, "tf32")
        checked(fused_kernel, tuning.PRODUCTS[0], capability, "*fp16", 2, 16)


def test_the_gpu_bench_names_what_it_needs():
    from basis_search.bench.run_suite import run_suite
    from basis_search.config import BenchConfig
    from basis_search.errors import BadInput

    with pytest.raises(BadInput, match="add device=cuda"):
        run_suite(BenchConfig(suite="stl", part="gpu"))
    if not torch.cuda.is_available():
        with pytest.raises(BadInput, match="no CUDA device"):
            run_suite(BenchConfig(suite="stl", device="cuda"))


def test_the_gpu_bench_runs_where_there_is_a_gpu(monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    from basis_search.bench.stl import gpu

    monkeypatch.setattr(gpu, "SIZES", (512,))
    assert len(gpu.gpu("cuda", 1)) == len(gpu.SPECS) * len(gpu.NAMES)
    assert len(gpu.training("cuda", 1)) == len(gpu.NAMES)
