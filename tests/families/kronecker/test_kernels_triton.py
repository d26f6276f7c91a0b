"""Triton kernels of Kronecker-sparse factors: values and gradients, and compilation for GPUs that are not present."""

from __future__ import annotations

import itertools
import os
from typing import Any

import pytest
import torch
from torch import Tensor

from basis_search.errors import BadInput
from basis_search.families import kronecker
from basis_search.families.kronecker import KroneckerChain, blocks, kernels_triton
from basis_search.families.protocol import TRITON_DTYPES, relative_gap, tolerance
from basis_search.layers.layer import LayerShape
from basis_search.replacement.structured_linear import StructuredLinear

pytest.importorskip("triton")

# a, b, c, d: blocks side by side in memory and strided, odd sizes, tiny blocks, oblong ones, d beyond one tile
SHAPES = [
    (3, 20, 17, 1),
    (2, 20, 18, 3),
    (1, 16, 33, 5),
    (1, 20, 17, 16),
    (1, 17, 16, 21),
    (2, 2, 2, 4),
    (8, 3, 4, 1),
    (5, 1, 16, 2),
]
LAYOUTS = ["bsf", "bsl"]


def a_factor(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def laid(x: Tensor, layout: str) -> Tensor:
    """x [batch, features] in that layout."""
    return x.T.contiguous() if layout == "bsl" else x


@pytest.mark.interpreted
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_factor_is_multiplied_by_one_launch(shape: tuple[int, ...], layout: str, triton_device: str) -> None:
    a, b, c, d = shape
    for dtype in (
        (torch.float32, torch.float16, torch.bfloat16) if triton_device == "cuda" else (torch.float32, torch.float16)
    ):
        w = a_factor(shape, dtype).to(triton_device)
        packed = kernels_triton.packed_factor(w)
        for batch in (1, 19):
            x = a_factor((batch, a * c * d), dtype, batch).to(triton_device)
            bias = a_factor((a * b * d,), torch.float32, 2).to(triton_device)
            want = blocks.apply(w.double(), x.double())
            limit = tolerance(dtype, c)
            last = layout == "bsl"
            y = kernels_triton.chain(laid(x, layout), [packed], bias=bias, last=last)
            assert relative_gap(y, laid(want + bias, layout)) <= limit
            narrow = kernels_triton.chain(laid(x[:, :-1], layout), [packed], out=a * b * d - 1, last=last)
            padded = torch.nn.functional.pad(x[:, :-1], (0, 1)).double()
            assert relative_gap(narrow, laid(blocks.apply(w.double(), padded)[:, :-1], layout)) <= limit


@pytest.mark.interpreted
def test_x_may_have_any_strides(triton_device: str) -> None:
    w = a_factor((2, 20, 18, 3), torch.float32).to(triton_device)
    wide = a_factor((9, 2 * 108 + 5), torch.float32).to(triton_device)
    for x in (
        wide[:, 3:111],
        wide[::2, 100:208],
        wide[:1, :108].expand(4, 108),
        wide[:, :216:2],
        wide[:, :108].T.contiguous().T,
    ):
        y = kernels_triton.chain(x, [kernels_triton.packed_factor(w)])
        assert relative_gap(y, blocks.apply(w.double(), x.double())) <= tolerance(torch.float32, 18)
    empty = kernels_triton.chain(wide[:0, :108], [kernels_triton.packed_factor(w)])
    assert empty.shape == (0, 120)


CHAINS = ["(1,5,16,6)*(8,12,7,1)", "(1,32,32,32)*(32,32,32,1)", "(1,3,9,5)*(9,5,4,1)", "(1,17,8,20)*(2,80,9,1)"]


@pytest.mark.interpreted
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("text", CHAINS)
def test_a_monarch_chain_is_one_launch(
    text: str, layout: str, triton_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from basis_kernels.kronecker import gpu

    left, right = KroneckerChain.parse(text)
    assert gpu.fits(left.storage, right.storage, 4)
    factors = [a_factor(p.storage, torch.float32, seed).to(triton_device) for seed, p in enumerate((left, right))]
    packed = [kernels_triton.packed_factor(w) for w in factors[::-1]]
    bias = a_factor((left.rows - 2,), torch.float32, 3).to(triton_device)
    monkeypatch.setattr(gpu, "multiply", None)  # a second launch would fail
    for batch in (1, 19):
        x = a_factor((batch, right.columns - 1), torch.float32, 7).to(triton_device)
        padded = torch.nn.functional.pad(x, (0, 1)).double()
        want = blocks.apply(factors[0].double(), blocks.apply(factors[1].double(), padded))[:, :-2] + bias
        y = kernels_triton.chain(laid(x, layout), packed, bias=bias, out=left.rows - 2, last=layout == "bsl")
        assert relative_gap(y, laid(want, layout)) <= tolerance(torch.float32, 64)


def test_only_monarch_shapes_that_fit_on_chip_are_fused() -> None:
    from basis_kernels.kronecker import gpu

    assert not gpu.fits((2, 4, 4, 2), (4, 4, 4, 1), 4)  # a_1 != 1
    assert not gpu.fits((1, 4, 4, 4), (2, 4, 4, 2), 4)  # d_2 != 1
    assert not gpu.fits((1, 256, 256, 256), (256, 256, 256, 1), 2)  # 256 x 16 rows of z do not fit into registers
    assert gpu.fits((1, 32, 64, 32), (32, 64, 32, 1), 2)  # rank 2
    assert not gpu.fits((1, 32, 96, 32), (32, 96, 32, 1), 2)  # rank 3 is not a power of two


@pytest.mark.interpreted
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_agree_with_torch(layout: str, triton_device: str) -> None:
    shapes = [(2, 4, 6, 3), (6, 6, 20, 1)]
    leaves = [a_factor(s, torch.float32, seed).to(triton_device).requires_grad_() for seed, s in enumerate(shapes)]
    x = laid(a_factor((35, 117), torch.float32, 5), layout).to(triton_device).requires_grad_()
    bias = a_factor((22,), torch.float32, 6).to(triton_device).requires_grad_()
    y = kernels_triton.chain(
        x, [kernels_triton.packed_factor(w) for w in leaves[::-1]], bias=bias, out=22, last=layout == "bsl"
    )
    rows = torch.nn.functional.pad(laid(x, layout) if layout == "bsl" else x, (0, 3))
    want = laid(blocks.apply(leaves[0], blocks.apply(leaves[1], rows))[:, :22] + bias, layout)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(8)).to(triton_device)
    got = torch.autograd.grad(y, [x, *leaves, bias], weight)
    for gradient, expected in zip(got, torch.autograd.grad(want, [x, *leaves, bias], weight), strict=True):
        assert relative_gap(gradient, expected) <= tolerance(torch.float32, 4 * 35)


@pytest.mark.interpreted
def test_the_gradient_of_a_long_batch_is_deterministic(triton_device: str) -> None:
    from basis_kernels.kronecker import gpu

    x, dy = (a_factor((1100, n), torch.float32, n).to(triton_device) for n in (18, 20))
    dw = gpu.weight_gradient(x, dy, (1, 20, 18, 1))
    assert relative_gap(dw[0, 0], x.double().T @ dy.double()) <= tolerance(torch.float32, 1100)
    assert torch.equal(dw, gpu.weight_gradient(x, dy, (1, 20, 18, 1)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", TRITON_DTYPES, ids=str)
def test_structured_linear_runs_and_trains_on_the_gpu(dtype: torch.dtype) -> None:
    spec = kronecker.Spec(chain="(1,32,32,32)*(32,32,32,1)")
    params = kronecker.initialize(spec, LayerShape(1000, 1024), bias=True, seed=0)
    layer = StructuredLinear(1000, 1024, "kronecker", spec, params, batch=64).to("cuda", dtype)
    x = torch.randn(64, 1000, device="cuda", dtype=dtype, requires_grad=True)
    want = StructuredLinear(1000, 1024, "kronecker", spec, params, batch=64).to("cuda", dtype).use("torch")
    with torch.no_grad():
        assert layer.kernel.startswith("triton")
        assert relative_gap(layer(x), want(x)) <= 2 * tolerance(dtype, 64)
    for module in (layer, want):
        module(x).float().square().sum().backward()
    for p, q in zip(layer.parameters(), want.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert relative_gap(p.grad, q.grad) <= 8 * tolerance(dtype, 64)


def test_triton_kernels_name_the_reason_to_refuse() -> None:
    spec, cuda = kronecker.Spec(), torch.device("cuda")
    named = {kernel.name: kernel for kernel in kronecker.KERNELS}
    for name in ("triton", "triton-fused", "triton-tf32x3"):
        assert "CUDA" in str(named[name].refuses(spec, LayerShape(256, 256)))
        assert named[name].refuses(spec, LayerShape(256, 256, device=cuda)) is None
        assert "float64" in str(named[name].refuses(spec, LayerShape(256, 256, 1, torch.float64, cuda)))
        assert "at least as large" in str(named[name].refuses(spec, LayerShape(257, 256, 1, device=cuda)))
    half = LayerShape(256, 256, 1, torch.float16, cuda)
    assert named["triton"].refuses(spec, half) is None
    assert "float32" in str(named["triton-tf32x3"].refuses(spec, half))


# Compilation for GPUs that are not present

CAPABILITIES = (80, 90, 100)
interpreting = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter is on, which rules out compiling"
)


def signature(kernel: Any, dtype: str, constants: dict[str, Any]) -> dict[str, str]:
    data, sums = {"x", "w", "y", "dy", "w_1", "w_2"}, {"bias", "dw"}
    names = [n for n in kernel.arg_names if n not in constants]
    return {n: f"*{dtype}" if n in data else "*fp32" if n in sums else "i32" for n in names}


def compiled(kernel: Any, config: Any, dtype: str, capability: int, **constants: Any) -> Any:
    from triton_ahead import compile_ahead

    values = {**config.blocks, **constants}
    return compile_ahead(
        kernel, signature(kernel, dtype, values), values, capability, config.num_warps, config.num_stages
    )


def first(configs: Any, **tile: int) -> Any:
    return next(f for f in configs if all(f.blocks[name] == value for name, value in tile.items()))


BSF_1 = {"x_l": 1, "y_l": 1, "x_k": 1, "y_j": 1, "d": 1}  # batch-size-first, d = 1
BSF = {"x_l": 1, "y_l": 1}  # batch-size-first, d > 1
BSL = {"x_n": 1, "y_n": 1}
NUMBERS = [("bf16", "ieee"), ("fp32", "tf32"), ("fp32", "ieee")]


@interpreting
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("dtype", "precision"), NUMBERS)
def test_factors_compile_to_tensor_cores_without_spills(dtype: str, precision: str, capability: int) -> None:
    from basis_kernels.kronecker.gpu import factor, gradient, pair, pair_tuning, tuning

    plain = dtype == "fp32" and precision == "ieee"  # no tensor cores: smaller tiles
    one, several = (
        first(tuning.PRODUCTS, BN=64 if plain else 128, BJ=32 if plain else 64, BL=1),
        first(tuning.PRODUCTS, BN=32, BJ=16 if plain else 32, BL=16),
    )
    made = [
        compiled(factor.factor_kernel, config, dtype, capability, HAS_BIAS=True, PRECISION=precision, w_j=1, **layout)
        for config, layout in ((one, BSF_1), (one, BSL), (several, BSF))
    ]
    one, several = first(tuning.SUMS, BJ=64, BK=64, BL=1), first(tuning.SUMS, BJ=16 if plain else 32, BL=8)
    made += [
        compiled(gradient.gradient_kernel, config, dtype, capability, PRECISION=precision, **layout)
        for config, layout in ((one, BSF_1), (several, BSF))
    ]
    fused = pair_tuning.CANDIDATES[-1]
    sizes = {"R": 1, "PP": 32, "QP": 32, "x_f": 1, "y_f": 1}
    made.append(compiled(pair.monarch_kernel, fused, dtype, capability, HAS_BIAS=True, PRECISION=precision, **sizes))
    for code in made:
        assert code.spills == 0
        assert code.tensor_cores == (not plain)


@interpreting
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_three_products_of_tf32_compile_to_tensor_cores_without_spills(capability: int) -> None:
    from basis_kernels.kronecker.gpu import factor, tuning

    for tile, layout in (({"BN": 64, "BJ": 64, "BK": 32, "BL": 1}, BSF_1), ({"BN": 16, "BJ": 16, "BL": 4}, BSF)):
        config = first(tuning.PRODUCTS, **tile)
        held = config.blocks["BL"] * tile["BN"] * tile["BJ"] / (32 * config.num_warps)
        assert held <= tuning.REGISTERS["tf32x3"][tile["BL"] > 1]
        code = compiled(
            factor.factor_kernel, config, "fp32", capability, HAS_BIAS=True, PRECISION="tf32x3", w_j=1, **layout
        )
        assert code.spills == 0
        assert code.tensor_cores


@interpreting
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_tiny_blocks_compile_without_spills(capability: int) -> None:
    from basis_kernels.kronecker.gpu import factor, tuning

    for (b, c), dtype in itertools.product(((2, 2), (8, 8)), ("fp16", "fp32")):
        config = first(tuning.BLOCKS, BN=4, BP=32)
        code = compiled(factor.small_kernel, config, dtype, capability, HAS_BIAS=True, B=b, CP=c, **BSF)
        assert code.spills == 0


def test_the_gpu_bench_needs_a_gpu() -> None:
    from basis_search.bench.run_suite import run_suite
    from basis_search.config import BenchConfig

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(BadInput, match="measures a GPU; add device=cuda"):
        run_suite(BenchConfig(suite="kronecker", part="gpu-float16"))
    with pytest.raises(BadInput, match="no CUDA device"):
        run_suite(BenchConfig(suite="kronecker", part="gpu-float16", device="cuda"))
