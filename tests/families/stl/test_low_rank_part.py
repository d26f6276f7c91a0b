"""Strassen-Tile layers with a low-rank part: values, cost, and errors that fall with each fit."""

import pytest
import torch

from basis_search.errors import BadInput
from basis_search.families import stl
from basis_search.families.protocol import NOT_INSTALLED, relative_gap, tolerance
from basis_search.families.stl import kernels_cpu, kernels_triton
from basis_search.families.stl.bases import bases
from basis_search.families.stl.fit import moments
from basis_search.families.stl.low_rank_part import best_low_rank, fit_tiles_and_low_rank, linear_part
from basis_search.families.stl.reference import reference
from basis_search.layers.layer import Layer, LayerShape

pytestmark = pytest.mark.fast


def make_layer(k, m, decay, bias=True, samples=4000, dtype=torch.float64, batch=None):
    g = torch.Generator().manual_seed(k)
    scales = torch.arange(1, k + 1, dtype=torch.float64) ** -decay
    axes = torch.linalg.qr(torch.randn(k, k, generator=g, dtype=torch.float64))[0]
    x = torch.randn(samples, k, generator=g, dtype=torch.float64) * scales @ axes.T + 0.1
    linear = torch.nn.Linear(k, m, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(m, k, generator=g, dtype=torch.float64))
    layer = Layer.from_linear(linear, x, batch=batch)
    return Layer(layer.name, layer.weight, layer.bias, layer.inputs, layer.held_out, layer.batch, dtype)


def error(spec, layer):
    rows = layer.held_out[: len(layer.held_out) // 4 * 4]
    expected = rows @ layer.weight.T
    bias = 0 if layer.bias is None else layer.bias
    return relative_gap(reference(spec, stl.fit(spec, layer), rows), expected + bias) ** 2


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_tiles_and_low_rank_part_are_no_worse_than_either_alone(decay):
    layer = make_layer(64, 48, decay, bias=False)
    both = error(stl.Spec(4, 24, waist=8), layer)
    up, down = best_low_rank(layer.weight, moments(layer)[1], 8)
    rows = layer.held_out
    narrow = relative_gap(rows @ down.T @ up.T, rows @ layer.weight.T) ** 2
    assert both < 0.97 * error(stl.Spec(4, 24), layer)
    assert both < 0.97 * narrow


def test_the_low_rank_part_alone_finds_a_layer_of_low_rank():
    layer = make_layer(32, 24, 0.3)
    g = torch.Generator().manual_seed(1)
    weight = torch.randn(24, 5, generator=g, dtype=torch.float64) @ torch.randn(5, 32, generator=g, dtype=torch.float64)
    low = Layer("low", weight, layer.bias, layer.inputs, layer.held_out, 8, torch.float64)
    assert error(stl.Spec(4, 16, waist=5), low) < 1e-16


def test_rounds_never_raise_the_reported_error():
    layer = make_layer(48, 32, 0.7)
    kept = bases(stl.Spec(4, 24))
    mean, covariance = moments(layer)
    problem, E, D, encoded, *_ = fit_tiles_and_low_rank(
        4, 6, 0, lambda _: (kept.encode, kept.decode), layer.weight, (mean, covariance), True
    )
    first_up, first_down = best_low_rank(layer.weight, covariance, 6)
    once = type(problem).of(4, layer.weight - first_up @ first_down, mean, covariance, True)
    assert problem.error(E, D, encoded) <= once.error(E, D, once.solve(E, D)[0]) * (1 + 1e-9)
    alone = type(problem).of(4, layer.weight, mean, covariance, True)
    assert problem.error(E, D, encoded) <= alone.solve(kept.encode, kept.decode)[1] * alone.scale * (1 + 1e-9)
    assert problem.error(E, D, encoded) == pytest.approx(problem.solve(E, D)[1] * problem.scale, rel=1e-6)


def test_the_linear_part_is_the_mean_output_among_rows_of_zeros():
    spec = stl.Spec(2, 5)
    kept = bases(spec)
    w = torch.randn(5, 3, 4, dtype=torch.float64)
    params = {"encode": kept.encode, "decode": kept.decode, "weight": w, "out_features": torch.tensor(8)}
    x = torch.randn(1, 6, dtype=torch.float64)
    zero = torch.zeros_like(x)
    answers = reference(spec, params, torch.cat([x, zero]))[0] + reference(spec, params, torch.cat([zero, x]))[1]
    assert torch.allclose(linear_part(kept.encode, kept.decode, w, 2) @ x[0], answers / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kernel_adds_the_low_rank_part(dtype):
    spec = stl.Spec(4, 24, waist=6)
    layer = make_layer(50, 37, 0.5, dtype=dtype)
    params = stl.fit(spec, layer)
    x = torch.randn(19, 50).to(dtype)
    expected = reference(spec, params, x)
    without = reference(stl.Spec(4, 24), params, x)
    assert relative_gap(without, expected) > 0.1
    for kernel in stl.KERNELS:
        if kernel.refuses(spec, LayerShape(50, 37, 19, dtype)) is None:
            gap = relative_gap(kernel.run(spec, kernel.pack(spec, params), x), expected)
            assert gap < 2 * tolerance(dtype, 50, kernel.growth(spec, params)), kernel.name


@pytest.mark.interpreted
def test_triton_kernels_add_the_low_rank_part(triton_device):
    spec = stl.Spec(4, 24, waist=6)
    params = stl.fit(spec, make_layer(50, 37, 0.5, dtype=torch.float32))
    params = {name: value.to(triton_device) for name, value in params.items()}
    x = torch.randn(19, 50).to(triton_device)
    for run in (kernels_triton.unfused, kernels_triton.fused):
        assert relative_gap(run(spec, params, x), reference(spec, params, x)) < 1e-5


def test_gradients_reach_the_low_rank_part():
    spec = stl.Spec(2, 5, waist=2)
    params = stl.fit(spec, make_layer(6, 4, 0.0))
    names = ("up", "down", "weight", "encode", "decode")
    leaves = [params[name].clone().requires_grad_() for name in names]
    torch_kernel = next(kernel for kernel in stl.KERNELS if kernel.name == "torch")
    x = torch.randn(4, 6, dtype=torch.float64)

    def run(*tensors):
        return torch_kernel.run(spec, {**params, **dict(zip(names, tensors, strict=True))}, x)

    assert torch.autograd.gradcheck(run, leaves)


def test_cost_counts_the_low_rank_part():
    layer, plain = LayerShape(64, 48, 32), stl.cost(stl.Spec(4, 24), LayerShape(64, 48, 32))
    whole = stl.cost(stl.Spec(4, 24, waist=5), layer)
    assert whole.multiplications - plain.multiplications == 32 * 5 * (64 + 48)
    assert whole.additions - plain.additions == 32 * 5 * (64 + 48)
    assert whole.parameters - plain.parameters == 5 * (64 + 48)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"waist": -1}, "at least 0"),
        ({"waist": 1.5}, "whole number"),
        ({"tile": 2, "rank": 7, "basis": "winograd", "waist": 4}, "leaves no error"),
    ],
)
def test_bad_waists_are_refused(fields, said):
    with pytest.raises(BadInput, match=said):
        stl.Spec(**fields)


def test_a_low_rank_part_beyond_the_layers_rank_is_refused():
    with pytest.raises(BadInput, match="rank 12 at most"):
        stl.fit(stl.Spec(4, 24, waist=13), make_layer(16, 12, 0.0))


def test_coefficients_beyond_float16_are_refused():
    layer = make_layer(16, 12, 0.0)
    large = Layer("large", layer.weight * 1e5, layer.bias, layer.inputs, layer.held_out, 8, torch.float16)
    with pytest.raises(BadInput, match=r"the largest of torch\.float16 is 6"):
        stl.fit(stl.Spec(4, 24), large)


def test_the_compiled_kernel_packs_no_absent_low_rank_part():
    if kernels_cpu._cpu is None:
        pytest.skip(NOT_INSTALLED)
    params = stl.fit(stl.Spec(4, 24), make_layer(16, 12, 0.0, dtype=torch.float32))
    assert kernels_cpu.pack("scalar", stl.Spec(4, 24), params).low_rank == {}


@pytest.mark.parametrize("decay", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("waist", [1, 4, 16])
@pytest.mark.parametrize("spec", [stl.Spec(4, 16), stl.Spec(4, 40), stl.Spec(4, 28, "ternary")], ids=str)
def test_neither_part_alone_has_a_smaller_reported_error(decay, waist, spec):
    layer = make_layer(32, 32, decay)
    mean, covariance = moments(layer)
    kept = bases(spec)
    problem, E, D, encoded, *_ = fit_tiles_and_low_rank(
        4, waist, 0, lambda _: (kept.encode, kept.decode), layer.weight, (mean, covariance), True
    )
    both = problem.error(E, D, encoded)
    tiles = type(problem).of(4, layer.weight, mean, covariance, True)
    up, down = best_low_rank(layer.weight, covariance, waist)
    rest = layer.weight - up @ down
    assert both <= tiles.solve(kept.encode, kept.decode)[1] * tiles.scale * (1 + 1e-9)
    assert both <= 4 * float((rest @ covariance * rest).sum()) * (1 + 1e-9)
