"""Compiled kernels and multiply: both layouts, tiny blocks, odd sides, any strides, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from basis_search.errors import BadInput
from basis_search.families import kronecker
from basis_search.families.kronecker import blocks, kernels_cpu
from basis_search.families.protocol import relative_gap, tolerance
from basis_search.layers.layer import LayerShape
from basis_search.replacement.structured_linear import StructuredLinear

ISAS = ("scalar", "avx2", "avx512")
# b = c that fit a vector whole, with and without lanes to spare; few columns; oblong ones; sums beyond one pass; d odd
SHAPES = [
    (16, 2, 2, 1), (3, 2, 2, 1), (5, 3, 3, 1), (7, 3, 3, 2), (4, 4, 4, 4), (3, 2, 2, 16), (1, 5, 5, 3), (2, 16, 16, 1),
    (1, 2, 2, 64), (2, 3, 4, 5), (4, 1, 3, 1), (3, 7, 2, 9), (1, 20, 150, 3), (2, 130, 13, 17), (1, 64, 64, 16),
    (8, 4, 8, 2), (1, 8, 6, 20),
]  # fmt: skip


def need(isa: str) -> None:
    if kernels_cpu._cpu is None or not kernels_cpu._cpu.supports(isa):
        pytest.skip(f"no compiled kernel {isa} here")


def a_factor(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_a_factor_in_both_layouts(isa: str, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    need(isa)
    w = a_factor(shape, dtype)
    _, _, c, _ = shape
    for batch in (1, 3, 7, 33, 100):
        x = a_factor((batch, shape[0] * c * shape[3]), dtype, batch)
        want = blocks.apply(w.double(), x.double())
        poison = torch.full_like(want, math.nan, dtype=dtype)
        del poison  # memory that the output probably reuses
        assert relative_gap(kernels_cpu.multiply(isa, x, [w], False), want) <= tolerance(dtype, c)
        assert relative_gap(kernels_cpu.multiply(isa, x.T.contiguous(), [w], True), want.T) <= tolerance(dtype, c)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("isa", ISAS)
def test_chains_batch_size_last_with_bias_and_padding(isa: str, threads: int) -> None:
    need(isa)
    factors = [a_factor(s, torch.float32, i) for i, s in enumerate([(2, 4, 6, 3), (6, 6, 20, 1)])]
    bias = a_factor((22,), torch.float32, 3)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        packed = kernels_cpu.packed_chain(isa, factors, bias, 22, last=True)
        for batch in (1, 5, 64, 300):
            x = a_factor((117, batch), torch.float32, batch)
            padded = torch.nn.functional.pad(x, (0, 0, 0, 3)).double()
            want = blocks.apply_last(factors[0].double(), blocks.apply_last(factors[1].double(), padded))[:22]
            y = kernels_cpu.run_packed(packed, x, last=True)
            assert relative_gap(y, want + bias[:, None]) <= tolerance(torch.float32, 26)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("isa", ISAS)
def test_threads_share_the_blocks_of_one_factor(isa: str) -> None:
    need(isa)
    w, x, bias = (
        a_factor((3, 9, 5, 4), torch.float32),
        a_factor((60, 70), torch.float32, 1),
        a_factor((108,), torch.float32),
    )
    packed = kernels_cpu.packed_chain(isa, [w], bias, 108, last=True)
    want = blocks.apply_last(w.double(), x.double()) + bias[:, None]
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert relative_gap(kernels_cpu.run_packed(packed, x, last=True), want) <= tolerance(torch.float32, 5)
    finally:
        torch.set_num_threads(before)


CHAIN = [(2, 4, 6, 3), (6, 6, 20, 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize("layout", ["bsf", "bsl"])
def test_multiply_takes_any_dtype_and_strides(layout: str, dtype: torch.dtype) -> None:
    factors = [a_factor(s, torch.float32, i).to(dtype) for i, s in enumerate(CHAIN)]
    wide = torch.complex128 if dtype.is_complex else torch.float64
    whole = torch.randn(240, 21, generator=torch.Generator().manual_seed(1)).to(dtype)
    last = layout == "bsl"
    for rows in (whole[::2].T, whole[:120].T, whole.T[::3, 3:123], whole.T[:0, :120], whole.T[:1, :120].expand(5, 120)):
        want = blocks.apply(factors[0].to(wide), blocks.apply(factors[1].to(wide), rows.to(wide)))
        y = kronecker.multiply(rows.T if last else rows, factors, layout)
        assert y.dtype == dtype
        got = y.T if last else y
        assert got.shape == want.shape
        gap = float((got.to(wide) - want).norm() / max(1e-300, float(want.norm())))
        assert gap <= 2 * tolerance(torch.float32 if dtype.is_complex else dtype, 26)
    deep = whole.T[:, :120].reshape(7, 3, 120)
    y = kronecker.multiply(deep.movedim(-1, 0) if last else deep, factors, layout)
    assert y.shape == ((24, 7, 3) if last else (7, 3, 24))


@pytest.mark.parametrize("layout", ["bsf", "bsl"])
def test_multiply_has_gradients(layout: str) -> None:
    factors = [
        a_factor(s, torch.float32, i).double().requires_grad_() for i, s in enumerate([(1, 2, 3, 4), (3, 4, 2, 1)])
    ]
    x = a_factor((3, 6), torch.float32).double()
    x = (x.T if layout == "bsl" else x).contiguous().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *ws: kronecker.multiply(x, ws, layout), (x, *factors), fast_mode=True)


@pytest.mark.fast
def test_bad_products_raise_bad_input() -> None:
    factors = [a_factor(s, torch.float32) for s in CHAIN]
    x = torch.zeros(3, 120)
    for call, words in (
        (lambda: kronecker.multiply(x, factors, "bls"), "no layout 'bls'; did you mean 'bsl'"),
        (lambda: kronecker.multiply(x[:, :7], factors), "last dimension of x is 7, but the chain .* has 120 columns"),
        (lambda: kronecker.multiply(x, factors, "bsl"), "first dimension of x is 3"),
        (lambda: kronecker.multiply(x, factors[::-1]), r"\(6,6,20,1\) and \(2,4,6,3\) do not compose"),
        (lambda: kronecker.multiply(x.double(), factors), "factor 0 is torch.float32 on cpu, but x is torch.float64"),
        (lambda: kronecker.multiply(x, [factors[0][0]]), "factor 0 has shape"),
        (lambda: kronecker.multiply(x, []), "at least one pattern"),
        (lambda: kronecker.multiply(x, factors, precision="fp8"), "no precision 'fp8'"),
        (lambda: kronecker.multiply(torch.tensor(1.0), factors), "no dimensions"),
    ):
        with pytest.raises(BadInput, match=words):
            call()


@pytest.mark.fast
@pytest.mark.parametrize(
    "text", ["(1,32,32,8)*(32,8,8,1)", "(1,2,2,32)*(2,2,2,16)*(4,16,16,1)", "(1,16,128,16)*(16,128,20,1)"]
)
def test_initialized_layers_preserve_the_variance(text: str) -> None:
    spec = kronecker.Spec(chain=text)
    rows, columns = spec.parsed.shape
    shape = LayerShape(columns - 5, rows - 3, 16)
    x = torch.randn(4096, columns - 5, generator=torch.Generator().manual_seed(0))
    ratios = []
    for seed in range(8):
        params = kronecker.initialize(spec, shape, seed=seed, gain=2.0)
        layer = StructuredLinear(columns - 5, rows - 3, "kronecker", spec, params)
        with torch.no_grad():
            ratios.append(float(layer(x).var() / x.var()))
    assert abs(sum(ratios) / len(ratios) - 4) < 0.6
    with pytest.raises(BadInput, match="gain is 0"):
        kronecker.initialize(spec, shape, gain=0)


@pytest.mark.slow
@pytest.mark.fast
def test_a_structured_layer_trains_and_learns_a_chain() -> None:
    spec = kronecker.Spec(chain="(1,4,4,4)*(4,4,4,1)")
    torch.manual_seed(0)
    wanted = kronecker.initialize(spec, LayerShape(16, 16), seed=1)
    layer = StructuredLinear(16, 16, "kronecker", spec, kronecker.initialize(spec, LayerShape(16, 16), seed=2))
    optimizer = torch.optim.Adam(layer.parameters(), 0.03)
    factors = [wanted["factor_0"], wanted["factor_1"]]
    losses = []
    for _ in range(300):
        x = torch.randn(64, 16)
        loss = (layer(x) - kronecker.multiply(x, factors)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.02 * losses[0]
