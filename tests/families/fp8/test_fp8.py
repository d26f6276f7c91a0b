"""fp8 layers: codes and scales of e4m3, clipping, NaNs, weights on the grid, refusals, the first run's comparison."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from conformance import layer
from pretend_cuda import FakeCuda, pretend_cuda
from torch import Tensor

from basis_search.families import dense, fp8
from basis_search.families.fp8.scales import from_exponent, power_of_two, quantise, to_exponent
from basis_search.families.protocol import GpuOperator, Kernel, accept, guarded
from basis_search.layers.layer import Layer, LayerShape

pytestmark = pytest.mark.fast

TORCH, SCALED_MM = fp8.KERNELS[1:]
CUDA = torch.device("cuda:0")


def test_scales_are_the_least_powers_of_two_in_range() -> None:
    draw = torch.Generator().manual_seed(0)
    largest = torch.cat([448.0 * 2.0 ** torch.arange(-100, 100), torch.rand(1000, generator=draw) * 1e3])
    scale = power_of_two(largest)
    assert bool((torch.frexp(scale).mantissa == 0.5).all())
    assert bool((largest / scale <= 448).all())
    assert bool((largest / (scale / 2) > 448).all())
    assert torch.equal(from_exponent(to_exponent(scale)), scale)
    assert bool(power_of_two(torch.tensor([math.nan, math.inf])).isnan().all())
    assert bool(torch.isfinite(1 / power_of_two(torch.zeros(1))).all())


@pytest.mark.parametrize("spec", [fp8.Spec(s, p) for s in ("static", "dynamic") for p in ("tensor", "row")])
def test_codes_do_not_depend_on_the_dtype_of_equal_inputs(spec: fp8.Spec) -> None:
    x = (torch.randn(64, 32, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 3, 32)).bfloat16()
    static = torch.tensor([2.0])
    codes, scale = quantise(spec, x, static)
    for dtype in (torch.float32, torch.float64):
        other, same = quantise(spec, x.to(dtype), static)
        assert torch.equal(other.view(torch.uint8), codes.view(torch.uint8))
        assert torch.equal(same, scale)
    largest = x.float().abs().amax(1, keepdim=True) if spec.per == "row" else x.float().abs().max()
    step = torch.clamp(x.float().abs() / 8, min=scale * 2.0**-9) / 2  # half a step of 3 bits, or of the subnormal codes
    assert bool((codes.float() * scale - x.float().clamp(-448 * scale, 448 * scale)).abs().le(step).all())
    if spec.scales == "dynamic":
        assert bool((codes.float() * scale).abs().le(largest * 1.07).all())


def test_later_inputs_beyond_the_calibrated_range_are_clipped() -> None:
    of = layer((64, 48), bias=False)
    spec = fp8.Spec("static")
    params = fp8.fit(spec, of)
    beyond = 448 * from_exponent(params["input_exponent"])
    assert of.inputs.abs().max() <= beyond < 2 * of.inputs.abs().max()
    x = torch.zeros(1, 64)
    x[0, 3] = 100 * beyond
    at_limit = torch.zeros(1, 64)
    at_limit[0, 3] = beyond
    for kernel in (fp8.KERNELS[0], TORCH):
        packed = kernel.pack(spec, params)
        assert torch.equal(kernel.run(spec, packed, x), kernel.run(spec, packed, at_limit))


@pytest.mark.parametrize("per", ["tensor", "row"])
def test_a_nan_or_infinity_spoils_what_shares_its_scale(per: str) -> None:
    of, spec = layer((64, 48)), fp8.Spec("dynamic", per)
    params = fp8.fit(spec, of)
    for bad in (math.nan, math.inf):
        x = torch.ones(3, 64)
        x[1, 2] = bad
        for kernel in (fp8.KERNELS[0], TORCH):
            y = kernel.run(spec, kernel.pack(spec, params), x)
            assert bool(y[1].isnan().all())
            assert bool(y[[0, 2]].isfinite().all()) == (per == "row")


@pytest.mark.parametrize("per", ["tensor", "row"])
def test_weights_on_the_grid_are_recovered_exactly(per: str) -> None:
    draw = torch.Generator().manual_seed(0)
    codes = (torch.randn(48, 64, generator=draw) * 30).to(torch.float8_e4m3fn)
    weight = codes.float()
    weight[:, 5] = 448.0
    of = dataclasses.replace(layer((64, 48), bias=False), weight=weight * 2.0**-9)
    params = fp8.fit(fp8.Spec("dynamic", per), of)
    assert torch.equal(params["weight"].view(torch.float8_e4m3fn).float(), weight)
    assert bool((params["largest"] == 448 * 2.0**-9).all())


@pytest.mark.slow
def test_the_operator_runs_on_the_double_and_never_waits(fake_cuda: FakeCuda) -> None:
    of = layer((64, 48), dtype=torch.bfloat16).to("cuda").on_device()
    for spec in (fp8.Spec("static"), fp8.Spec("static", "row"), *fp8.examples(of)[1:]):
        assert SCALED_MM.refuses(spec, of) is None
        params = fp8.fit(spec, of)
        packed, x = SCALED_MM.pack(spec, params), of.inputs.to(of.dtype)
        with torch.no_grad(), fake_cuda.synchronization_raises():
            y = SCALED_MM.run(spec, packed, x)
        expected = fp8.KERNELS[0].run(spec, params, x.double())
        assert float((y.double() - expected).norm()) < 4e-3 * float(expected.norm())


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (LayerShape(64, 64, dtype=torch.bfloat16), "the layer is on cpu, and torch._scaled_mm"),
        (
            LayerShape(64, 64, dtype=torch.float32, device=CUDA),
            "used in bfloat16 and float16, but the layer is float32",
        ),
        (LayerShape(64, 40, dtype=torch.bfloat16, device=CUDA), "in multiples of 16, but the layer has 64 and 40"),
    ],
)
def test_refusals_name_the_limit(shape: LayerShape, reason: str) -> None:
    assert reason in (SCALED_MM.refuses(fp8.Spec(), shape) or "")


def test_an_old_gpu_is_refused() -> None:
    with pretend_cuda(capability=(8, 0)):
        shape = LayerShape(64, 64, dtype=torch.bfloat16, device=CUDA)
        assert "needs compute capability 8.9, but this GPU has 8.0" in (SCALED_MM.refuses(fp8.Spec(), shape) or "")


def test_a_wrong_or_missing_operator_is_a_refusal_and_runs_once(fake_cuda: FakeCuda) -> None:
    calls = 0

    def doubled(spec: fp8.Spec, packed: object, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return 2 * SCALED_MM.run(spec, packed, x)

    def absent(spec: fp8.Spec, packed: object, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.aten.no_such_operator(x)
        return y

    shape = LayerShape(64, 64, dtype=torch.bfloat16, device=CUDA)
    for run, reason in ((doubled, "op is off by 1.0e+00 on a small layer"), (absent, "op does not run here")):
        kernel = Kernel("wrong", run, SCALED_MM.pack, accept)
        refuses = guarded(
            kernel, GpuOperator("op", (8, 9), (torch.bfloat16,)), lambda spec, of: None, fp8.fit, fp8.KERNELS[0].run
        ).refuses
        for _ in range(2):
            assert reason in (refuses(fp8.Spec(), shape) or "")
    assert calls == 1


def test_flops_hardly_change_and_bytes_halve_in_bfloat16() -> None:
    shape = LayerShape(512, 2048, 64, dtype=torch.bfloat16)
    full = dense.cost(dense.Spec(), shape)
    for spec in fp8.examples(shape):
        cost = fp8.cost(spec, shape)
        assert full.flops < cost.flops < 1.01 * full.flops
        assert cost.bytes - 2 * 64 * (512 + 2048) < 0.51 * (full.bytes - 2 * 64 * (512 + 2048))


def test_layers_of_zeros_stay_finite() -> None:
    of = Layer("zeros", torch.zeros(16, 32), None, torch.zeros(4, 32), torch.zeros(4, 32), batch=4)
    for spec in fp8.examples(of):
        params = fp8.fit(spec, of)
        for kernel in (fp8.KERNELS[0], TORCH):
            assert torch.equal(kernel.run(spec, kernel.pack(spec, params), torch.zeros(4, 32)), torch.zeros(4, 16))
        assert fp8.forecast(spec, of).error == 0
