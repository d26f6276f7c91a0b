"""Product quantisation: every kernel against the reference, codes bit for bit."""

import math

import pytest
import torch

from basis_search.families import pq
from basis_search.families.pq.kernels import KERNELS
from basis_search.families.pq.reference import encode, reference
from basis_search.families.pq.spec import BUCKETS
from basis_search.families.protocol import (
    Kernel,
    Params,
    relative_gap,
    tolerance,
)
from basis_search.layers.layer import LayerShape

_cpu = pytest.importorskip("basis_kernels.pq._cpu", reason="the compiled CPU kernels are not installed")

COMPILED = [k for k in KERNELS if k.name.startswith("cpu-")]


def random_params(
    codebooks: int, width: int, out: int, dtype: torch.dtype, table: str = "uint8", seed: int = 0
) -> Params:
    """Distinct thresholds per level and node, tables over all of 0 .. 255."""
    generator = torch.Generator().manual_seed(seed)
    params = {
        "split_columns": torch.randint(width, (codebooks, 4), generator=generator, dtype=torch.int32),
        "thresholds": torch.randn(codebooks, 15, generator=generator).to(dtype),
        "bias": torch.randn(out, generator=generator).to(dtype),
    }
    if table == "float32":
        return params | {"table": torch.randn(codebooks, BUCKETS, out, generator=generator)}
    return params | {
        "table": torch.randint(256, (codebooks, BUCKETS, out), generator=generator).to(torch.uint8),
        "scale": torch.rand(out, generator=generator) + 0.5,
        "offset": -128.0 * codebooks * torch.rand(out, generator=generator),
    }


def trees_of(params: Params) -> object:
    return _cpu.Trees(params["split_columns"], params["thresholds"].float())


def skip_unless_it_runs(name: str) -> None:
    if name.removeprefix("cpu-") not in _cpu.instruction_sets():
        pytest.skip(f"this processor has no {name}")


@pytest.mark.parametrize("kernel", COMPILED, ids=lambda k: k.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int16, torch.int8])
@pytest.mark.parametrize(("codebooks", "width"), [(1, 4), (2, 5), (5, 64), (16, 37), (33, 1024), (128, 16)])
def test_codes_equal_the_reference_bit_for_bit(kernel: Kernel, dtype: torch.dtype, codebooks: int, width: int) -> None:
    skip_unless_it_runs(kernel.name)
    params = random_params(codebooks, width, 3, dtype)
    if not dtype.is_floating_point:
        params["thresholds"] = 20 * torch.randn(codebooks, 15, generator=torch.Generator().manual_seed(1))
    for n in (1, 31, 33, 257) if codebooks > 16 else (1, 31, 32, 33, 255, 257, 3 * 256 + 1, 4161):
        x = torch.randn(n, width, generator=torch.Generator().manual_seed(n))
        x = x.to(dtype) if dtype.is_floating_point else (20 * x).round().to(dtype)
        hits = torch.randint(n, (20,))
        x[hits, params["split_columns"][0, 0]] = params["thresholds"][0, 0].to(dtype)  # exactly at a threshold
        if dtype.is_floating_point:
            x[0, 0], x[-1, -1], x[n // 2, 0] = torch.nan, torch.inf, -torch.inf
        else:
            x[0, 0], x[-1, -1] = torch.iinfo(dtype).min, torch.iinfo(dtype).max
        expected = encode(pq.Spec(codebooks), params, x).to(torch.uint8)
        for layout in (x, x.T.contiguous().T, torch.cat([x, x], 1)[:, :width], x.repeat_interleave(2, 0)[::2]):
            guard = torch.full((codebooks, n + 32), 99, dtype=torch.uint8)  # nothing may be written past the last row
            for codes in (torch.full((n, codebooks), 99, dtype=torch.uint8), guard[:, :n].T):
                _cpu.encode(trees_of(params), layout, codes, kernel.name.removeprefix("cpu-"), 2)
                assert torch.equal(codes, expected)
            assert (guard[:, n:] == 99).all()


@pytest.mark.parametrize("kernel", COMPILED, ids=lambda k: k.name)
@pytest.mark.parametrize("table", ["uint8", "float32"])
@pytest.mark.parametrize("codebooks", [1, 3, 16, 17, 64, 128, 257, 520])
def test_sums_equal_the_scalar_kernel_bit_for_bit(kernel: Kernel, table: str, codebooks: int) -> None:
    skip_unless_it_runs(kernel.name)
    isa = kernel.name.removeprefix("cpu-")
    for out in (1, 7, 16, 17, 31, 32, 33, 64, 65, 130):
        params = random_params(codebooks, 4, out, torch.float32, table)
        if table == "uint8":
            params["table"][:, :8] = 255  # sums far above 2^15
        packed, _ = KERNELS[2].pack(pq.Spec(codebooks, "tree", table), params)
        draw = torch.Generator().manual_seed(out)
        for n in (3, 37, 129):  # few rows fill registers with outputs, many with rows
            codes = torch.randint(BUCKETS, (n, codebooks), generator=draw).to(torch.uint8)
            for dtype in (torch.float32, torch.bfloat16):
                expected, y = (torch.full((n, out), torch.nan, dtype=dtype) for _ in range(2))
                _cpu.scan(packed[0], codes, expected, "scalar", 1)
                _cpu.scan(packed[0], codes.T.contiguous().T if n == 37 else codes, y, isa, 1)
                assert torch.equal(y, expected)
                if table == "uint8" and codebooks <= 256:
                    y = torch.full((out, n), torch.nan, dtype=dtype).T  # column-major
                    _cpu.scan(packed[0], codes, y, isa, 1)
                    assert torch.equal(y, expected)


@pytest.mark.parametrize("kernel", COMPILED, ids=lambda k: k.name)
@pytest.mark.parametrize("codebooks", [1, 3, 4, 24, 48, 272])
def test_averages_are_those_of_the_reference(kernel: Kernel, codebooks: int) -> None:
    """Means of 128 and more are no negative numbers; odd C has nothing to average."""
    skip_unless_it_runs(kernel.name)
    spec = pq.Spec(codebooks, sums="averaged")
    for out in (1, 33):
        params = random_params(codebooks, 20, out, torch.float32)
        params["table"][:, 4:] |= 128
        packed = kernel.pack(spec, params)
        for n in (1, 70):
            x = torch.randn(n, 20, generator=torch.Generator().manual_seed(n))
            y = kernel.run(spec, packed, x)
            assert relative_gap(y, reference(spec, params, x)) <= tolerance(
                torch.float32, 1, kernel.growth(spec, params)
            )


@pytest.mark.parametrize("codebooks", [4, 16, 64])
def test_the_bias_of_averages_is_as_computed(codebooks: int) -> None:
    """Each pair rounded up adds a quarter on average: C log2(U) / 4 in all, within 5 %."""
    draw = torch.Generator().manual_seed(codebooks)
    params = random_params(codebooks, 8, 64, torch.float32)
    params |= {"scale": torch.ones(64), "offset": torch.zeros(64), "bias": torch.zeros(64)}
    codes = torch.randint(BUCKETS, (2000, codebooks), generator=draw).to(torch.uint8)
    tables, _ = KERNELS[2].pack(pq.Spec(codebooks), params)[0]
    exact, averaged = torch.empty(2000, 64), torch.empty(2000, 64)
    isa = _cpu.instruction_sets()[-1]
    _cpu.scan(tables, codes, exact, isa, 1)
    _cpu.scan(tables, codes, averaged, isa, 1, True)
    bias = codebooks * math.log2(min(codebooks, 16)) / 4
    assert abs(float((averaged.double() - exact.double()).mean())) < 0.05 * bias


def test_thresholds_below_an_integer_type_are_named() -> None:
    params = random_params(2, 8, 5, torch.float32)
    params["thresholds"][1, 3] = -128.5
    trees, codes = trees_of(params), torch.empty(3, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match="int8 rows cannot be compared with a threshold that is NaN or below -128"):
        _cpu.encode(trees, torch.zeros(3, 8, dtype=torch.int8), codes, "scalar", 1)
    _cpu.encode(trees, torch.zeros(3, 8, dtype=torch.int16), codes, "scalar", 1)
    assert torch.equal(codes, encode(pq.Spec(2), params, torch.zeros(3, 8)).to(torch.uint8))


@pytest.mark.parametrize("kernel", [k for k in KERNELS[1:] if k.name != "triton"], ids=lambda k: k.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("table", ["uint8", "float32"])
@pytest.mark.parametrize(("codebooks", "width", "out"), [(1, 4, 1), (3, 7, 10), (16, 37, 65), (260, 30, 33)])
def test_kernels_agree_with_the_reference(
    kernel: Kernel, dtype: torch.dtype, table: str, codebooks: int, width: int, out: int
) -> None:
    if kernel.name.startswith("cpu-"):
        skip_unless_it_runs(kernel.name)
    spec = pq.Spec(codebooks, "tree", table)
    params = random_params(codebooks, width, out, dtype, table)
    packed = kernel.pack(spec, params)
    assert kernel.refuses(spec, LayerShape(width, out, dtype=dtype)) is None
    limit = tolerance(dtype, codebooks, kernel.growth(spec, params))
    for n in (1, 2, 33, 300):
        x = torch.randn(n, width).to(dtype)
        y = kernel.run(spec, packed, x)
        assert y.dtype == dtype
        assert relative_gap(y, reference(spec, params, x)) <= limit
    assert kernel.run(spec, packed, torch.empty(0, width, dtype=dtype)).shape == (0, out)
    assert kernel.run(spec, packed, torch.zeros(2, 3, width, dtype=dtype)).shape == (2, 3, out)
    assert kernel.run(spec, packed, torch.zeros(width, dtype=dtype)).shape == (out,)


@pytest.mark.parametrize("kernel", COMPILED, ids=lambda k: k.name)
@pytest.mark.parametrize(("out", "dtype"), [(37, torch.float32), (600, torch.float32), (600, torch.bfloat16)])
def test_outputs_past_the_caches_are_those_of_small_products(kernel: Kernel, out: int, dtype: torch.dtype) -> None:
    """16 MiB and more are staged and streamed: whole lines, edges and gaps between rows as they were."""
    skip_unless_it_runs(kernel.name)
    isa = kernel.name.removeprefix("cpu-")
    params = random_params(5, 9, out, torch.float32)
    tables, trees = KERNELS[2].pack(pq.Spec(5), params)[0]
    n = (1 << 24) // (out * dtype.itemsize) + 71
    few = torch.randn(1000, 9, generator=torch.Generator().manual_seed(out))
    x = few[torch.arange(n) % 1000]
    expected = torch.empty(1000, out, dtype=dtype)
    _cpu.linear(trees, tables, few, expected, isa, 1)
    whole = torch.full((n * out + 3,), 99, dtype=dtype)
    gaps = torch.full((n, out + 5), 99, dtype=dtype)
    for y in (whole[1 : 1 + n * out].view(n, out), gaps[:, 3 : 3 + out]):
        _cpu.linear(trees, tables, x, y, isa, 2)
        for begin in range(0, n, 1000):
            assert torch.equal(y[begin : begin + 1000], expected[: n - begin])
    assert (whole[[0, -2, -1]] == 99).all()
    assert (gaps[:, :3] == 99).all()
    assert (gaps[:, 3 + out :] == 99).all()


def test_threads_change_nothing() -> None:
    params = random_params(16, 64, 200, torch.float32)
    tables, trees = KERNELS[2].pack(pq.Spec(16), params)[0]
    for n in (1, 5, 1000):
        x = torch.randn(n, 64)
        one, many = torch.empty(n, 200), torch.empty(n, 200)
        isa = _cpu.instruction_sets()[-1]
        _cpu.linear(trees, tables, x, one, isa, 1)
        _cpu.linear(trees, tables, x, many, isa, 4)
        assert torch.equal(one, many)


@pytest.mark.parametrize("encoder", ["tree", "kmeans"])
def test_gradients_reach_tables_and_constants_but_not_the_hash(encoder: str) -> None:
    from basis_search.layers.layer import Layer

    x = torch.randn(200, 8)
    layer = Layer("g", torch.randn(3, 8), torch.randn(3), x[:150], x[150:], 4)
    torch_kernel = next(k for k in KERNELS if k.name == "torch")
    for table, trained in (("float32", {"table", "bias"}), ("uint8", {"scale", "offset", "bias"})):
        spec = pq.Spec(2, encoder, table)
        params = {k: v.requires_grad_() if v.is_floating_point() else v for k, v in pq.fit(spec, layer).items()}
        torch_kernel.run(spec, torch_kernel.pack(spec, params), x).square().sum().backward()  # type: ignore[no-untyped-call]
        reached = {k for k, v in params.items() if v.grad is not None and bool(v.grad.abs().sum() > 0)}
        assert reached == trained


def test_the_module_checks_shapes_and_types() -> None:
    params = random_params(2, 8, 5, torch.float32)
    tables, trees = KERNELS[2].pack(pq.Spec(2), params)[0]
    y = torch.empty(3, 5)
    for x, message in (
        (torch.zeros(3, 1), r"x has 1 columns, but the trees split on column \d"),
        (torch.zeros(3, 8).double(), "float32, bfloat16, int16"),
    ):
        with pytest.raises(ValueError, match=message):
            _cpu.linear(trees, tables, x, y, "scalar", 1)
    with pytest.raises(ValueError, match=r"\[n, out\]"):
        _cpu.linear(trees, tables, torch.zeros(4, 8), y, "scalar", 1)
    with pytest.raises(ValueError, match="does not have the instruction set 'avx1024'"):
        _cpu.linear(trees, tables, torch.zeros(3, 8), y, "avx1024", 1)


def test_another_device_or_dtype_is_refused_with_a_sentence() -> None:
    for kernel in COMPILED:
        skip_unless_it_runs(kernel.name)
        assert "float64" in (kernel.refuses(pq.Spec(2), LayerShape(8, 5, dtype=torch.float64)) or "")
        assert "cuda" in (kernel.refuses(pq.Spec(2), LayerShape(8, 5, device=torch.device("cuda"))) or "")
