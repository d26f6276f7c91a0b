"""Int8 layers: scales and codes of torch's operators, the predicted error, saturation, gradients."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
import warnings

import pytest
import torch
from pretend_cuda import FakeCuda
from torch import Tensor

from basis_search.errors import BadInput
from basis_search.families import dense, int8
from basis_search.families.int8 import kernels as int8_kernels
from basis_search.families.int8 import space as int8_space
from basis_search.families.int8.reference import qparams, qparams_on_device, quantise, reference
from basis_search.families.protocol import Kernel, choose
from basis_search.layers.layer import Layer, LayerLike, LayerShape

pytestmark = pytest.mark.fast

KERNELS = {kernel.name: kernel for kernel in int8.KERNELS}
QUANTISED = ("torch-onednn", "torch-int8")


def gaussian_layer(in_features: int = 256, out_features: int = 128, **fields: object) -> Layer:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(600, in_features, generator=draw)
    given = {
        "name": "gaussian",
        "weight": torch.randn(out_features, in_features, generator=draw),
        "bias": torch.randn(out_features, generator=draw),
        "inputs": x[:400],
        "held_out": x[400:],
        "batch": 64,
    }
    return Layer(**(given | fields))  # type: ignore[arg-type]


def runs(name: str, spec: int8.Spec) -> Kernel:
    kernel = KERNELS[name]
    reason = kernel.refuses(spec, LayerShape(64, 64))
    if reason is not None:
        pytest.skip(reason)
    return kernel


@pytest.mark.parametrize("reduce_range", [True, False])
def test_qparams_are_those_of_torch(reduce_range: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    ranges = [(0.0, 0.0), (-1.0, 1.0), (0.5, 2.0), (-3.0, -1.0), (0.0, 1e-5), (-1e-5, 0.0), (-1e-4, 3e-4), (0.0, 1e-44),
              (-1e-39, 1e-39), (-1e30, 3e37), (-1e-3, 5.0), (-127.0, 0.0), (-0.5, 255.0)]  # fmt: skip
    for magnitude in torch.logspace(-7, 4, 200):
        low, high = (torch.randn(2, generator=draw).sort().values * magnitude).tolist()
        ranges.append((low, high))
    for low, high in ranges:
        x = torch.tensor([low, high])
        scale, zero = torch._choose_qparams_per_tensor(x, reduce_range)
        assert qparams(float(x[0]), float(x[1]), reduce_range) == (float(torch.tensor(scale)), zero), (low, high)


def hard_to_round(reduce_range: bool) -> Tensor:
    """Inputs whose code depends on whether the multiply-add is rounded once or twice."""
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(3_000_000, generator=draw) * 2.7 + 0.4
    scale, zero = qparams(float(x.min()), float(x.max()), reduce_range)
    inverse = 1 / torch.tensor(scale)
    once = (x.double() * inverse.double() + zero).float().round()
    twice = (x * inverse + zero).round()
    hard = x[once != twice]
    assert len(hard) > 0
    return torch.cat([x.aminmax().min[None], x.aminmax().max[None], hard, x[:500]])


@pytest.mark.parametrize("reduce_range", [True, False])
def test_qparams_on_a_device_are_the_same_numbers(reduce_range: bool) -> None:
    draw = torch.Generator().manual_seed(1)
    ends = [(0.0, 0.0), (0.5, 2.0), (-3.0, -1.0), (0.0, 1e-44), (-1e-39, 1e-39), (-1e-3, 1e-3), (-3e38, 3e38)]
    ends += [(0.0, factor * 2.0**-128) for factor in (127.0, 128.0, 255.0, 256.0)]
    ends += [(math.nan, 1.0), (-math.inf, 1.0)]
    for magnitude in torch.logspace(-44, 8, 200):
        low, high = (torch.randn(2, generator=draw).sort().values * magnitude).tolist()
        ends.append((low, high))
    for low, high in ends:
        x = torch.tensor([low, high])
        scale, zero = qparams_on_device(x, reduce_range)
        expected = qparams(float(x[0]), float(x[1]), reduce_range)
        assert (float(scale), int(zero)) == expected or (math.isnan(expected[0]) and bool(scale.isnan())), (low, high)


@pytest.mark.slow
@pytest.mark.parametrize("reduce_range", [True, False])
@pytest.mark.parametrize("rows", [1, 16, 17, 200])
def test_the_integer_product_on_a_device_has_the_same_codes(fake_cuda: FakeCuda, rows: int, reduce_range: bool) -> None:
    spec, kernel = int8.Spec(reduce_range), KERNELS["torch-int-mm"]
    hard = hard_to_round(reduce_range)[: 64 * rows]
    x = torch.cat([hard, torch.zeros(64 * rows - len(hard))]).view(rows, 64)
    unit = {"weight": torch.eye(64, dtype=torch.int8), "scale": torch.ones(64)}
    codes, scale = quantise(x, reduce_range)
    packed, moved = kernel.pack(spec, {n: t.to("cuda") for n, t in unit.items()}), x.to("cuda")
    with fake_cuda.synchronization_raises():
        got = kernel.run(spec, packed, moved)
    assert torch.equal((got.cpu() / scale).round(), codes)


def test_the_integer_product_is_chosen_on_gpus_and_says_what_it_takes(fake_cuda: FakeCuda) -> None:
    cuda = torch.device("cuda:0")
    assert choose(int8.KERNELS, int8.Spec(True), LayerShape(64, 64, 8, torch.bfloat16, cuda)).name == "torch-int-mm"
    reason = KERNELS["torch-int-mm"].refuses(int8.Spec(), LayerShape(60, 64, device=cuda))
    assert "multiples of 8, but the layer has 60 and 64" in (reason or "")
    layer = gaussian_layer(60, 64, device=cuda).on_device()
    with pytest.raises(BadInput, match="leave int8 out for layer 'gaussian'"):
        int8.suggest(None, layer, int8.Space())


@pytest.mark.slow
@pytest.mark.parametrize("reduce_range", [True, False])
@pytest.mark.parametrize("name", QUANTISED)
def test_every_code_equals_that_of_the_operator(name: str, reduce_range: bool) -> None:
    spec = int8.Spec(reduce_range)
    kernel = runs(name, spec)
    x = hard_to_round(reduce_range)
    for width in (1, 5, 64):  # whole vectors, and what is left over at the end of a row
        rows = torch.cat([x, x[: -len(x) % width]]).view(-1, width)
        unit = {"weight": torch.eye(width, dtype=torch.int8), "scale": torch.ones(width)}
        codes, scale = quantise(rows, reduce_range)
        got = kernel.run(spec, kernel.pack(spec, unit), rows)
        assert torch.equal((got / scale).round(), codes)


def test_weights_on_the_grid_are_recovered_exactly() -> None:
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(-127, 128, (12, 30), generator=draw, dtype=torch.int8)
    codes[:, 3] = 127
    scale = 2.0 ** torch.arange(-6, 6)
    layer = gaussian_layer(30, 12, weight=codes.float() * scale[:, None])
    params = int8.fit(int8.Spec(), layer)
    assert torch.equal(params["weight"], codes)
    assert torch.equal(params["scale"], scale)


@pytest.mark.parametrize("reduce_range", [True, False])
def test_error_is_what_uniform_rounding_predicts(reduce_range: bool) -> None:
    layer = gaussian_layer(bias=None)
    spec = int8.Spec(reduce_range)
    params = int8.fit(spec, layer)
    x = layer.held_out
    exact = x.double() @ layer.weight.double().T
    error = float((reference(spec, params, x) - exact).square().sum() / exact.square().sum())
    # A rounding to steps of s has variance s^2 / 12, independent of everything else.
    step = float(x.max() - x.min()) / (127 if reduce_range else 255)
    from_inputs = step**2 / 12 / float(x.square().mean())
    from_weights = float(params["scale"].square().mean()) / 12 / float(layer.weight.square().mean())
    assert error == pytest.approx(from_inputs + from_weights, rel=0.05)


def test_constant_zero_and_tiny_weights_and_inputs_stay_finite() -> None:
    weight = torch.zeros(4, 8)
    weight[1] = 1e-42
    weight[2] = 1e30
    layer = gaussian_layer(8, 4, weight=weight, bias=None)
    for spec in (int8.Spec(True), int8.Spec(False)):
        params = int8.fit(spec, layer)
        for x in (torch.zeros(3, 8), torch.full((3, 8), 5.0), torch.full((3, 8), 1e-30)):
            for kernel in int8.KERNELS:
                if kernel.refuses(spec, layer) is None:
                    y = kernel.run(spec, kernel.pack(spec, params), x)
                    assert bool(torch.isfinite(y).all()), kernel.name
                    assert bool((y[:, 0] == 0).all()), kernel.name


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_nan_or_infinity_makes_the_whole_call_nan(bad: float) -> None:
    layer, spec = gaussian_layer(8, 4), int8.Spec()
    params = int8.fit(spec, layer)
    x = torch.ones(3, 8)
    x[1, 2] = bad
    for kernel in int8.KERNELS:
        if kernel.refuses(spec, layer) is None:
            y = kernel.run(spec, kernel.pack(spec, params), x)
            assert not bool(torch.isfinite(y).any()), kernel.name


@pytest.mark.slow
def test_inputs_whose_sum_overflows_are_computed() -> None:
    layer, spec = gaussian_layer(8, 4, weight=torch.full((4, 8), 1e-3)), int8.Spec()
    params = int8.fit(spec, layer)
    x = torch.full((8000, 8), 1e34)
    for kernel in int8.KERNELS:
        if kernel.refuses(spec, layer) is None:
            torch.testing.assert_close(kernel.run(spec, kernel.pack(spec, params), x), torch.full((8000, 4), 8e31))


def test_input_gradient_passes_straight_through() -> None:
    layer, spec = gaussian_layer(16, 8), int8.Spec()
    params = int8.fit(spec, layer)
    kernel = KERNELS["torch"]
    x = layer.held_out[:5].clone().requires_grad_(True)
    y = kernel.run(spec, kernel.pack(spec, params), x)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(y, x, g)
    torch.testing.assert_close(gradient, g @ (params["weight"] * params["scale"][:, None]))
    with torch.no_grad():
        assert torch.equal(kernel.run(spec, params | {"weight": params["weight"].float()}, x), y)


def test_packing_is_silent_and_leaves_the_engine_as_it_was() -> None:
    layer, spec = gaussian_layer(), int8.Spec()
    params = int8.fit(spec, layer)
    before = torch.backends.quantized.engine
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in QUANTISED:
            KERNELS[name].pack(spec, params)
    assert torch.backends.quantized.engine == before


def test_the_fused_operator_runs_on_x86_and_is_chosen_first() -> None:
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("this torch has no fbgemm engine")
    assert choose(int8.KERNELS, int8.Spec(True), LayerShape(64, 64)).name == "torch-int8"
    assert choose(int8.KERNELS, int8.Spec(True), LayerShape(64, 64, dtype=torch.float64)).name == "torch"


SATURATION = """
import torch
from basis_search.families import int8
from basis_search.layers.layer import LayerShape
for kernel in int8.KERNELS[2:4]:
    for reduce_range in (True, False):
        print(kernel.name, reduce_range, kernel.refuses(int8.Spec(reduce_range), LayerShape(64, 64)), sep="|")
"""


@pytest.mark.slow
def test_eight_bit_inputs_are_refused_where_pairs_of_products_saturate() -> None:
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("this torch has no fbgemm engine")
    limited = os.environ | {"FBGEMM_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    result = subprocess.run([sys.executable, "-c", SATURATION], env=limited, capture_output=True, text=True, check=True)
    lines = [line.split("|") for line in result.stdout.splitlines()]
    assert [line[:2] for line in lines] == [[name, flag] for name in QUANTISED for flag in ("True", "False")]
    for _, reduce_range, reason in lines:
        if reduce_range == "True":
            assert reason == "None"
        else:
            assert "reduce_range=True" in reason


def test_a_torch_without_the_engine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Without:
        supported_engines = ("qnnpack",)

    monkeypatch.setattr(torch.backends, "quantized", Without)
    reason = int8_kernels._fbgemm_refusal.__wrapped__(int8.Spec())
    assert reason is not None
    assert "fbgemm" in reason
    assert "qnnpack" in reason


def test_an_operator_that_torch_lacks_is_a_refusal() -> None:
    def missing(spec: int8.Spec, params: object) -> object:
        return torch.ops.onednn.no_such_operator

    reason = int8_kernels._probe(missing, KERNELS["torch"].run, int8.Spec())
    assert reason is not None
    assert "no_such_operator" in reason


def test_the_probe_catches_an_inexact_operator() -> None:
    def saturates(spec: int8.Spec, packed: object, x: Tensor) -> Tensor:
        return reference(spec, packed, x).clamp(-1e4, 1e4).float()  # type: ignore[arg-type]

    reason = int8_kernels._probe(lambda spec, params: params, saturates, int8.Spec())
    assert reason is not None
    assert "exact" in reason


def test_flops_hardly_change_and_bytes_quarter() -> None:
    shape = LayerShape(512, 2048, 64)
    cost, full = int8.cost(int8.Spec(), shape), dense.cost(dense.Spec(), shape)
    assert full.flops < cost.flops < 1.01 * full.flops
    assert cost.bytes - 4 * 64 * (512 + 2048) < 0.26 * (full.bytes - 4 * 64 * (512 + 2048))


@pytest.mark.parametrize("wrong", [1, 0, "true", None])
def test_spec_refuses_all_but_bools(wrong: object) -> None:
    with pytest.raises(BadInput, match="reduce_range"):
        int8.Spec(reduce_range=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("vnni", [True, False])
def test_the_best_spec_is_the_full_range_where_integers_run_it(vnni: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(spec: int8.Spec, layer: LayerLike) -> str | None:
        return None if vnni or spec.reduce_range else "not exact here"

    integer = dataclasses.replace(next(k for k in int8.KERNELS if k.name == "torch-onednn"), refuses=refuses)
    monkeypatch.setattr(int8_space, "KERNELS", (*int8.KERNELS[:2], integer))
    assert int8.best_spec(LayerShape(64, 32, 8)) == int8.Spec(reduce_range=not vnni)
    monkeypatch.undo()
    # No integer kernel takes float64.
    assert int8.best_spec(LayerShape(64, 32, 8, torch.float64)) == int8.Spec()
