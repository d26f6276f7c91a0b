"""Rectangular tiles: every part of the family against a plain loop over tiles, and refusals."""

import numpy as np
import pytest
import torch

from basis_search.errors import BadInput
from basis_search.families import stl
from basis_search.families.protocol import relative_gap, spec_from_json, spec_to_json
from basis_search.families.stl.bases import bases
from basis_search.families.stl.fit import moments
from basis_search.families.stl.normal_equations import TileProblem
from basis_search.layers.layer import Layer, LayerShape
from basis_search.schemes import standard, strassen, tensor_product
from basis_search.schemes.algebra.factor_orders import factor_permutations
from basis_search.schemes.numerical import approximation
from basis_search.schemes.numerical.least_squares import product_tensor, residual

pytestmark = pytest.mark.fast

SPECS = [
    stl.Spec("2x4x4", 20),
    stl.Spec("4x2x4", 20),
    stl.Spec("4x4x2", 20),
    stl.Spec("2x2x4", 10),
    stl.Spec("4x4x8", 48),
    stl.Spec("8x4x4", 48),
    stl.Spec("1x2x3", 6, "standard"),
    stl.Spec("3x1x2", 6, "standard"),
]


def make_layer(k, m, bias=True, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    linear = torch.nn.Linear(k, m, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(m, k, generator=g, dtype=torch.float64))
    x = torch.randn(600, k, generator=g, dtype=torch.float64) / torch.arange(1, k + 1) ** 0.5 + 0.2
    layer = Layer.from_linear(linear, x, batch=16)
    return Layer(layer.name, layer.weight, layer.bias, layer.inputs, layer.held_out, layer.batch, dtype)


def by_hand(spec, params, x):
    """The definition, tile by tile."""
    (n, k, m), out = spec.sides, int(params["out_features"])
    E, D, w = (params[name].double() for name in ("encode", "decode", "weight"))
    rows, width = -(-len(x) // n) * n, w.shape[1] * k
    padded = torch.zeros(rows, width, dtype=torch.float64)
    padded[: len(x), : x.shape[1]] = x
    y = torch.zeros(rows, w.shape[2] * m, dtype=torch.float64)
    for i in range(rows // n):
        for j in range(w.shape[2]):
            total = torch.zeros(len(E), dtype=torch.float64)
            for K in range(w.shape[1]):
                total += (E @ padded[i * n : i * n + n, K * k : K * k + k].reshape(-1)) * w[:, K, j]
            y[i * n : i * n + n, j * m : j * m + m] = (D @ total).view(n, m)
    y = y[: len(x), :out]
    return y + params["bias"].double() if "bias" in params else y


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize(
    ("rows", "k", "m", "bias"), [(1, 1, 1, True), (5, 7, 9, False), (8, 12, 8, True), (3, 5, 13, True)]
)
def test_reference_and_torch_are_the_definition(spec, rows, k, m, bias):
    layer = make_layer(k, m, bias)
    params = stl.fit(spec, layer)
    x = layer.held_out[:rows]
    expected = by_hand(spec, params, x)
    assert relative_gap(stl.KERNELS[0].run(spec, params, x), expected) < 1e-12
    assert relative_gap(stl.KERNELS[1].run(spec, params, x), expected) < 1e-12
    if spec.basis == "standard":
        assert relative_gap(expected, torch.nn.functional.linear(x, layer.weight, layer.bias)) < 1e-12


@pytest.mark.parametrize("spec", SPECS[:4], ids=str)
@pytest.mark.parametrize("free_bias", [True, False])
def test_the_reported_error_is_the_measured_error(spec, free_bias):
    layer = make_layer(16, 12, bias=free_bias)
    mean, covariance = moments(layer)
    kept = bases(spec)
    problem = TileProblem.of(spec.sides, layer.weight, mean, covariance, free_bias)
    encoded, left = problem.solve(kept.encode, kept.decode)
    n = spec.sides[0]
    rng = np.random.default_rng(0)
    root = torch.linalg.cholesky(covariance)
    x = torch.from_numpy(rng.standard_normal((8000 * n, 16))) @ root.T + mean
    params = {"weight": encoded, "encode": kept.encode, "decode": kept.decode, "out_features": torch.tensor(12)}
    gap = stl.KERNELS[0].run(spec, params, x) - x @ layer.weight.T
    if free_bias:
        gap = gap + problem.shift(kept.encode, kept.decode, encoded)[:12]
        assert float(gap.mean(0).abs().max()) < 0.2
        whole = (x - mean) @ layer.weight.T
    else:
        whole = x @ layer.weight.T
    assert float(gap.square().sum() / whole.square().sum()) == pytest.approx(left, rel=0.05)


@pytest.mark.parametrize("spec", SPECS[:4], ids=str)
def test_sweeps_and_a_low_rank_part_lower_the_error(spec):
    layer = make_layer(24, 16)
    rows = layer.held_out
    target = torch.nn.functional.linear(rows, layer.weight, layer.bias)
    errors = {}
    for name, more in (("plain", {}), ("swept", {"sweeps": 6}), ("waist", {"waist": 4})):
        full = stl.Spec(spec.tile, spec.rank, **more)
        errors[name] = relative_gap(stl.KERNELS[0].run(full, stl.fit(full, layer), rows), target) ** 2
    assert errors["plain"] < bases(spec).residual
    assert errors["swept"] < errors["plain"] * 1.02
    assert errors["waist"] < errors["plain"]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_cost_counts_tiles_of_their_sides(spec):
    n, k, m = spec.sides
    cost = stl.cost(spec, LayerShape(10, 7, 5))
    rows, ins, outs = -(-5 // n), -(-10 // k), -(-7 // m)
    kept = bases(spec)
    if kept.encoding is None:
        assert cost.multiplications == spec.rank * (rows * ins * outs + rows * ins * n * k + rows * outs * n * m)
    else:
        assert cost.multiplications == spec.rank * rows * ins * outs
    params = stl.fit(spec, make_layer(10, 7))
    assert cost.parameters == sum(p.numel() for name, p in params.items() if name != "out_features")


def test_kernels_name_the_reason_to_refuse():
    compiled = [kernel for kernel in stl.KERNELS if kernel.name.startswith("cpu-")]
    triton = [kernel for kernel in stl.KERNELS if kernel.name.startswith("triton")]
    shape = LayerShape(16, 16, 8)
    for kernels, spec, said in (
        (triton, SPECS[0], "square tiles, not 2x4x4"),
        (compiled, stl.Spec("4x5x4", 80, "standard"), "2, 3, 4 or 8 inputs and outputs, not 4x5x4"),
        (compiled, stl.Spec("1x4x6", 24, "standard"), "inputs and outputs, not 1x4x6"),
        (compiled, stl.Spec("8x8x4", 256, "standard"), "at most 128 products, not 256"),
    ):
        assert kernels
        for kernel in kernels:
            assert said in kernel.refuses(spec, shape)


def test_json_and_equality():
    spec = SPECS[0]
    assert spec_from_json(stl, spec_to_json(spec)) == spec
    assert spec_from_json(stl, {"tile": 4, "rank": 24}) == stl.Spec()


def test_all_six_orders_of_a_rectangular_scheme_multiply():
    scheme = tensor_product(strassen(), standard(1, 2, 3))
    factors = tuple(f.astype(float) for f in (scheme.U, scheme.V, scheme.W))
    forms = factor_permutations(*factors, (2, 4, 6))
    assert len({form for form, _ in forms}) == 6
    for form, moved in forms:
        assert residual(product_tensor(*form), moved) < 1e-20
    for form in ((2, 4, 4), (4, 2, 4), (4, 4, 2)):
        kept = approximation.load(*form, 20)
        assert residual(product_tensor(*form), (kept.U, kept.V, kept.W)) == pytest.approx(kept.residual, rel=1e-9)


@pytest.mark.slow
def test_layers_of_few_rows_get_tiles_of_two_rows():
    class Trial:
        def suggest_categorical(self, name, choices):
            return next((c for c in choices if c == "approximate 2x4x4"), choices[0])

        def suggest_int(self, name, low, high):
            return high

    thin = make_layer(256, 256)
    two = Layer("thin", thin.weight, thin.bias, thin.inputs, thin.held_out, 2)
    assert stl.suggest(Trial(), two, stl.Space()).tile == "2x4x4"
    many = Layer("many", thin.weight, thin.bias, thin.inputs, thin.held_out, 64)
    assert stl.suggest(Trial(), many, stl.Space()).tile != "2x4x4"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tile": "4x4x4"}, "use tile=4"),
        ({"tile": "2x9x4"}, "up to 8"),
        ({"tile": "2x4"}, "rows x inputs x outputs"),
        ({"tile": "٢x4x4"}, "rows x inputs x outputs"),
        ({"tile": "2x4x4", "rank": 40}, "the nearest is 25"),
        ({"tile": "2x2x4", "rank": 7, "basis": "strassen"}, "use tile=2"),
        ({"tile": "5x7x3", "rank": 9}, "no approximate bases for tile 5x7x3"),
        ({"tile": "1x2x3", "rank": 5, "basis": "standard"}, "use rank=6"),
    ],
)
def test_bad_sides_are_refused(fields, said):
    with pytest.raises(BadInput, match=said):
        stl.Spec(**fields)
