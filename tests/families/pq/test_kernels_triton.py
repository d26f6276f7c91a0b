"""Product quantisation in Triton: codes bit for bit, sums against the reference, machine code without spills."""

from __future__ import annotations

import pytest
import torch

from basis_search.families import pq
from basis_search.families.pq import kernels_triton
from basis_search.families.pq.reference import encode, reference
from basis_search.families.pq.spec import BUCKETS
from basis_search.families.protocol import Params, relative_gap, tolerance
from basis_search.layers.layer import LayerShape

pytest.importorskip("triton")


def operator(codebooks: int, width: int, out: int, dtype: torch.dtype, table: str, device: str) -> Params:
    draw = torch.Generator().manual_seed(codebooks)
    params = {
        "split_columns": torch.randint(width, (codebooks, 4), generator=draw, dtype=torch.int32),
        "thresholds": torch.randn(codebooks, 15, generator=draw).to(dtype),
        "bias": torch.randn(out, generator=draw).to(dtype),
    }
    if table == "float32":
        params["table"] = torch.randn(codebooks, BUCKETS, out, generator=draw)
    else:
        params["table"] = torch.randint(256, (codebooks, BUCKETS, out), generator=draw).to(torch.uint8)
        params["scale"] = torch.rand(out, generator=draw) + 0.5
        params["offset"] = -128.0 * codebooks * torch.rand(out, generator=draw)
    return {name: value.to(device) for name, value in params.items()}


@pytest.mark.interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("codebooks", "width"), [(1, 4), (5, 33), (17, 64)])
def test_codes_equal_the_reference_bit_for_bit(
    dtype: torch.dtype, codebooks: int, width: int, triton_device: str
) -> None:
    from basis_kernels.pq import gpu

    params = operator(codebooks, width, 3, dtype, "uint8", triton_device)
    for n in (1, 15, 65, 130):
        x = torch.randn(n, width, generator=torch.Generator().manual_seed(n)).to(dtype).to(triton_device)
        x[n // 3, params["split_columns"][0, 0].long()] = params["thresholds"][0, 0]  # exactly at a threshold
        x[0, 0], x[-1, -1], x[n // 2, 0] = torch.nan, torch.inf, -torch.inf
        expected = encode(pq.Spec(codebooks), params, x).to(torch.uint8)
        for laid in (x, x.T.contiguous().T, torch.cat([x, x], 1)[:, :width], x.repeat_interleave(2, 0)[::2]):
            assert torch.equal(gpu.encode(laid, params["split_columns"], params["thresholds"].float()), expected)
    assert gpu.encode(x[:0], params["split_columns"], params["thresholds"].float()).shape == (0, codebooks)


@pytest.mark.interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("table", ["uint8", "float32"])
@pytest.mark.parametrize(("codebooks", "out"), [(1, 1), (5, 65), (17, 257)])
def test_layers_agree_with_the_reference(
    dtype: torch.dtype, table: str, codebooks: int, out: int, triton_device: str
) -> None:
    spec = pq.Spec(codebooks, "tree", table)
    params = operator(codebooks, 20, out, dtype, table, triton_device)
    packed = kernels_triton.pack(spec, params)
    growth = next(k for k in pq.KERNELS if k.name == "triton").growth(spec, {k: v.cpu() for k, v in params.items()})
    for n in (1, 3, 64, 65):  # both ways to add: the last reads whole tables
        x = torch.randn(n, 20).to(dtype).to(triton_device)
        y = kernels_triton.run(spec, packed, x)
        assert y.dtype == dtype
        assert relative_gap(y, reference(spec, params, x)) <= tolerance(dtype, codebooks, growth)
    assert kernels_triton.run(spec, packed, x.view(5, 13, 20)).shape == (5, 13, out)


@pytest.mark.interpreted
def test_sums_of_integers_are_exact(triton_device: str) -> None:
    """Beyond 2^16, where 16-bit sums would wrap, and for odd and even codebooks alike."""
    from basis_kernels.pq import gpu

    table = torch.full((300, BUCKETS, 9), 255, dtype=torch.uint8, device=triton_device)
    one, zero = torch.ones(9, device=triton_device), torch.zeros(9, device=triton_device)
    for n in (2, 65):
        codes = torch.randint(BUCKETS, (n, 300), dtype=torch.uint8, device=triton_device)
        assert (gpu.table_sum(codes, table, one, zero, torch.float32) == 255 * 300).all()


def test_what_it_does_not_run_is_refused_with_a_sentence() -> None:
    spec, cuda = pq.Spec(2), torch.device("cuda")
    assert "runs on CUDA" in (kernels_triton.refuses(spec, LayerShape(8, 8, 1)) or "")
    assert "float64" in (kernels_triton.refuses(spec, LayerShape(8, 8, 1, torch.float64, cuda)) or "")


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize(
    ("name", "tile"),
    [
        ("encode_kernel", {"BN": 16, "BC": 16}),
        ("encode_kernel", {"BN": 64, "BC": 16}),
        ("sum_few_kernel", {"BN": 4, "BM": 256}),
        ("sum_many_kernel", {"BN": 32, "BM": 64}),
    ],
)
def test_kernels_compile_without_spills(name: str, tile: dict[str, int], capability: int) -> None:
    from basis_kernels.pq import gpu
    from triton_ahead import compile_ahead

    kernel = getattr(gpu, name)
    encodes = name == "encode_kernel"
    for entry in ("fp32",) if encodes else ("u8", "fp32"):
        pointers = {
            "x": "*bf16", "columns": "*i32", "thresholds": "*fp32", "codes": "*u8",
            "table": f"*{entry}", "scale": "*fp32", "offset": "*fp32", "y": "*bf16",
        }  # fmt: skip
        values = dict(tile) if encodes else {**tile, "INTEGER": entry == "u8"}
        names = [n for n in kernel.arg_names if n not in values]
        made = compile_ahead(kernel, {n: pointers.get(n, "i32") for n in names}, values, capability)
        assert made.spills == 0, made.registers
        if name == "sum_many_kernel":
            assert made.shared_bytes > 0  # the tables' entries
