"""Strassen-Tile layers: exact schemes are exact, planted weights are recovered, cost counts every operation."""

import itertools

import numpy as np
import pytest
import torch

from basis_search.errors import BadInput
from basis_search.families import stl
from basis_search.families.protocol import relative_gap, spec_hash, tolerance
from basis_search.families.stl import normal_equations
from basis_search.families.stl.adapt import adapt
from basis_search.families.stl.bases import bases
from basis_search.families.stl.fit import encode_weight, moments
from basis_search.families.stl.normal_equations import TileProblem
from basis_search.families.stl.reference import reference
from basis_search.layers.layer import Layer, LayerShape

pytestmark = pytest.mark.fast

EXACT = [stl.Spec(2, 7, "strassen"), stl.Spec(2, 7, "winograd"), stl.Spec(4, 49, "strassen2")]
EXACT += [
    stl.Spec(4, 49, "winograd2"),
    stl.Spec(3, 27, "standard"),
    stl.Spec(3, 23, "laderman"),
    stl.Spec(1, 1, "standard"),
]


def make_layer(k, m, samples=64, bias=True, dtype=torch.float64, decay=0.0, seed=0, batch=None):
    g = torch.Generator().manual_seed(seed)
    scales = torch.arange(1, k + 1, dtype=torch.float64) ** (-decay)
    x = torch.randn(samples * 2, k, generator=g, dtype=torch.float64) * scales + 0.3
    linear = torch.nn.Linear(k, m, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(m, k, generator=g, dtype=torch.float64))
        if bias:
            linear.bias.copy_(torch.randn(m, generator=g, dtype=torch.float64))
    layer = Layer.from_linear(linear, x, batch=batch)
    return Layer(layer.name, layer.weight, layer.bias, layer.inputs, layer.held_out, layer.batch, dtype)


def dense(layer, x):
    y = x @ layer.weight.T
    return y if layer.bias is None else y + layer.bias


@pytest.mark.parametrize("spec", EXACT, ids=str)
@pytest.mark.parametrize(("n", "k", "m"), [(1, 1, 1), (3, 5, 7), (8, 12, 4), (13, 9, 21)])
@pytest.mark.parametrize("bias", [True, False])
def test_exact_schemes_give_the_dense_layer(spec, n, k, m, bias):
    layer = make_layer(k, m, bias=bias)
    params = stl.fit(spec, layer)
    x = torch.randn(n, k, dtype=torch.float64)
    for kernel in stl.KERNELS:
        if kernel.refuses(spec, layer) is None:
            y = kernel.run(spec, kernel.pack(spec, params), x)
            assert y.shape == (n, m)
            assert relative_gap(y, dense(layer, x)) < 1e-13


def planted(spec, k, m, seed=0):
    """Parameters with the bases of `spec` and random encoded weights."""
    kept = bases(spec)
    K, J = -(-k // spec.tile), -(-m // spec.tile)
    w = torch.randn(spec.rank, K, J, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return {"encode": kept.encode, "decode": kept.decode, "weight": w, "out_features": torch.tensor(m)}


@pytest.mark.parametrize("keep", [44, 40, 33])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_with_the_structure_is_recovered(keep, bias):
    """Strassen's scheme nested once, minus some products: exact for weights that those products encode as zero."""
    kept = bases(stl.Spec(4, 49, "strassen2"))
    # The weights' tiles are in the null space of the dropped products' encoding.
    dropped = torch.arange(keep, 49)
    seen = kept.encode_weight[dropped]
    null = torch.linalg.svd(seen)[2][int(torch.linalg.matrix_rank(seen)) :]
    k, m = 24, 20
    assert len(null) > 0
    coefficients = torch.randn(k // 4, m // 4, len(null), dtype=torch.float64)
    tiles = (coefficients @ null).view(k // 4, m // 4, 4, 4)  # [K, J, p, q]
    weight = tiles.permute(0, 2, 1, 3).reshape(k, m).T
    layer = make_layer(k, m, bias=bias)
    layer = Layer("planted", weight, layer.bias, layer.inputs, layer.held_out, layer.batch, torch.float64)
    mean, covariance = moments(layer)
    E, D = kept.encode[:keep], kept.decode[:, :keep]
    problem = TileProblem.of(4, weight, mean, covariance, bias)
    encoded, left = problem.solve(E, D)
    assert left < 1e-10
    params = {"encode": E, "decode": D, "weight": encoded, "out_features": torch.tensor(m)}
    if bias:
        params["bias"] = layer.bias + problem.shift(E, D, encoded)
    y = reference(stl.Spec(4, keep), params, layer.held_out[:16])  # the spec gives tile and rank, `params` the bases
    expected = dense(layer, layer.held_out[:16])
    assert relative_gap(y, expected) ** 2 < 1e-10


@pytest.mark.parametrize("free_bias", [True, False])
def test_solve_is_the_least_squares_solution(free_bias):
    """Compared with dense least squares over all tiles of samples with exactly these moments."""
    spec, k, m = stl.Spec(2, 5), 6, 4
    kept = bases(spec)
    layer = make_layer(k, m, bias=False, seed=3)
    # Two rows of a tile: all ordered pairs of samples are independent draws from the empirical distribution.
    points = layer.inputs[:12]
    mean = points.mean(0)
    covariance = (points - mean).T @ (points - mean) / len(points)
    problem = TileProblem.of(2, layer.weight, mean, covariance, free_bias)
    encoded, left = problem.solve(kept.encode, kept.decode)
    shift = problem.shift(kept.encode, kept.decode, encoded)
    x = torch.stack([torch.stack([a, b]) for a, b in itertools.product(points, points)]).reshape(-1, k)
    y = x @ layer.weight.T
    params = {"encode": kept.encode, "decode": kept.decode, "out_features": torch.tensor(m)}
    size = encoded.numel()
    columns = []
    for unit in torch.eye(size, dtype=torch.float64):
        columns.append(reference(spec, {**params, "weight": unit.view_as(encoded)}, x).flatten())
    if free_bias:
        columns += [row.expand(len(x), m).flatten() for row in torch.eye(m, dtype=torch.float64)]
    A = torch.stack(columns, dim=1)
    expected = torch.linalg.lstsq(A, y.flatten(), driver="gelsd").solution
    best = (A @ expected - y.flatten()).square().sum()
    solution = encoded.flatten() if not free_bias else torch.cat([encoded.flatten(), shift])
    got = (A @ solution - y.flatten()).square().sum()
    assert float(got / best) == pytest.approx(1, abs=1e-8)
    scale = (y - y.mean(0) if free_bias else y).square().sum()
    assert left == pytest.approx(float(got / scale), rel=1e-6)


@pytest.mark.parametrize("free_bias", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_conjugate_gradients_reach_the_direct_solution(free_bias, decay, monkeypatch):
    kept, layer = bases(stl.Spec(4, 24)), make_layer(68, 20, samples=600, bias=False, decay=decay)
    problem = TileProblem.of(4, layer.weight, *moments(layer), free_bias)
    encoded, left = problem.solve(kept.encode, kept.decode)
    monkeypatch.setattr(normal_equations, "LARGEST_SIDE", 100)
    monkeypatch.setattr(normal_equations, "BLOCK_SIDE", 24 * 5)  # four blocks, the last one smaller
    monkeypatch.setattr(normal_equations, "MOST_STEPS", 60)
    monkeypatch.setattr(normal_equations, "LEAST_GAIN", 1e-4)
    stepped, stepped_left = problem.solve(kept.encode, kept.decode)
    assert stepped.shape == encoded.shape
    # The error reported in float32 is the quadratic form in float64.
    rows = problem._normal(kept.encode, kept.decode, slice(0, 17), torch.float64)
    flat, right = stepped.view(24 * 17, 5), problem.right(kept.encode, kept.decode).reshape(24 * 17, 5)
    error = 1 - float((2 * flat * right - flat * (rows @ flat)).sum()) / problem.scale
    assert left - 1e-9 <= error < 1.003 * left
    assert stepped_left == pytest.approx(error, rel=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("free_bias", [True, False])
@pytest.mark.parametrize("rank", [4, 6])
def test_adapted_bases_lower_the_reported_and_the_measured_error(free_bias, rank):
    kept = bases(stl.Spec(2, rank))
    layer = make_layer(6, 4, bias=False, seed=3, decay=0.7)
    points = layer.inputs[:12]
    mean = points.mean(0) * 3
    points = points + 2 * points.mean(0)
    covariance = (points - mean).T @ (points - mean) / len(points)
    problem = TileProblem.of(2, layer.weight, mean, covariance, free_bias)
    before = problem.solve(kept.encode, kept.decode)[1]
    x = torch.stack([torch.stack([a, b]) for a, b in itertools.product(points, points)]).reshape(-1, 6)
    y = x @ layer.weight.T
    scale = (y - y.mean(0) if free_bias else y).square().sum()
    last = before
    for sweeps in (1, 5, 30):
        E, D, encoded = adapt(problem, kept.encode, kept.decode, sweeps)
        params = {"encode": E, "decode": D, "weight": encoded, "out_features": torch.tensor(4)}
        if free_bias:
            params["bias"] = problem.shift(E, D, encoded)
        error = float((reference(stl.Spec(2, rank), params, x) - y).square().sum() / scale)
        assert error == pytest.approx(problem.solve(E, D)[1], rel=1e-6)
        assert error <= last + 1e-12
        last = error
    assert last < 0.9 * before


@pytest.mark.slow
def test_adapting_recovers_perturbed_bases():
    kept = bases(stl.Spec(2, 7, "winograd"))
    layer = make_layer(12, 10, samples=500, bias=False, decay=0.3)
    problem = TileProblem.of(2, layer.weight, *moments(layer), False)
    g = torch.Generator().manual_seed(0)
    E = kept.encode + 0.05 * torch.randn(7, 4, generator=g, dtype=torch.float64)
    D = kept.decode + 0.05 * torch.randn(4, 7, generator=g, dtype=torch.float64)
    start = problem.solve(E, D)[1]
    left = problem.solve(*adapt(problem, E, D, 60)[:2])[1]
    assert start > 1e-4
    assert left < 0.02 * start


@pytest.mark.slow
def test_sweeps_lower_the_held_out_error_on_correlated_inputs():
    layer = make_layer(64, 32, samples=2000, decay=1.0)
    errors = []
    for sweeps in (0, 10):
        spec = stl.Spec(4, 24, sweeps=sweeps)
        y = reference(spec, stl.fit(spec, layer), layer.held_out)
        errors.append(relative_gap(y, dense(layer, layer.held_out)) ** 2)
    assert errors[1] < 0.7 * errors[0]


def test_fit_beats_data_independent_weights_on_correlated_inputs():
    layer = make_layer(64, 32, samples=2000, decay=1.0)
    spec = stl.Spec(4, 24)
    params = stl.fit(spec, layer)
    kept = bases(spec)
    blind = {**params, "weight": encode_weight(kept.encode_weight, layer.weight, 4), "bias": layer.bias}
    expected = dense(layer, layer.held_out)
    error = relative_gap(reference(spec, params, layer.held_out), expected)
    assert error < 0.7 * relative_gap(reference(spec, blind, layer.held_out), expected)


def test_fewer_samples_than_inputs_raise_a_warning():
    layer = make_layer(16, 8, samples=200)
    few = Layer("few", layer.weight, layer.bias, layer.inputs[:7], layer.held_out, 8, torch.float32)
    with pytest.warns(UserWarning, match="7 samples of 16 inputs"):
        stl.fit(stl.Spec(4, 24), few)


@pytest.mark.filterwarnings("ignore:stl. layer")
@pytest.mark.parametrize("samples", [1, 2, 5])
@pytest.mark.parametrize("degenerate", ["zero", "constant", "one feature"])
def test_fits_with_few_samples_or_singular_moments(samples, degenerate):
    layer = make_layer(16, 8, samples=samples)
    inputs = layer.inputs[:samples].clone()
    if degenerate == "zero":
        inputs.zero_()
    elif degenerate == "constant":
        inputs[:] = inputs[0]
    else:
        inputs[:, 1:] = 0
    layer = Layer("few", layer.weight, layer.bias, inputs, layer.held_out, 8, torch.float32)
    params = stl.fit(stl.Spec(4, 24), layer)
    assert all(bool(torch.isfinite(p).all()) for p in params.values())
    x = torch.randn(64, 16, dtype=torch.float64)
    assert relative_gap(reference(stl.Spec(4, 24), params, x), dense(layer, x)) < 3


def test_a_moment_over_more_rows_than_the_mean_keeps_the_covariance_positive():
    layer = make_layer(16, 8, samples=200)
    few, many = layer.inputs[:3] + 1.0, torch.cat([layer.inputs, layer.held_out])
    moment = many.T @ many / len(many)
    naive = moment - torch.outer(few.mean(0), few.mean(0))
    assert torch.linalg.eigvalsh(naive)[0] < 0
    both = Layer("both", layer.weight, layer.bias, few, layer.held_out, 8, torch.float32, moment=moment)
    mean, covariance = moments(both)
    assert torch.linalg.eigvalsh(covariance)[0] > -1e-12
    assert torch.isfinite(mean).all()


@pytest.mark.parametrize("spec", [stl.Spec(4, 24), stl.Spec(2, 5), stl.Spec(2, 7, "winograd")], ids=str)
def test_parameters_have_the_layers_dtype_and_one_layout(spec):
    for dtype in (torch.float32, torch.bfloat16):
        params = stl.fit(spec, make_layer(10, 6, dtype=dtype))
        t = spec.tile
        assert {k: tuple(v.shape) for k, v in params.items()} == {
            "weight": (spec.rank, -(-10 // t), -(-6 // t)),
            "encode": (spec.rank, t * t),
            "decode": (t * t, spec.rank),
            "bias": (6,),
            "out_features": (),
        }
        assert all(params[name].dtype == dtype for name in ("weight", "encode", "decode", "bias"))


@pytest.mark.parametrize("spec", [stl.Spec(4, 24), stl.Spec(2, 4), stl.Spec(4, 24, "ternary"), *EXACT], ids=str)
@pytest.mark.parametrize(("n", "k", "m"), [(1, 3, 2), (8, 8, 8), (9, 6, 13)])
def test_cost_counts_every_operation(spec, n, k, m):
    """Compared with a count over all tiles."""
    kept = bases(spec)
    t = spec.tile
    mul = add = 0
    rows, ins, outs = (len(range(0, size, t)) for size in (n, k, m))
    for _ in itertools.product(range(rows), range(ins)):
        if kept.encoding is None:
            mul, add = mul + kept.encode.numel(), add + kept.encode.numel()
        else:
            add += len(kept.encoding.steps)
    for _ in itertools.product(range(spec.rank), range(rows), range(ins), range(outs)):
        mul, add = mul + 1, add + 1
    for _ in itertools.product(range(rows), range(outs)):
        if kept.decoding is None:
            mul, add = mul + kept.decode.numel(), add + kept.decode.numel()
        else:
            add += len(kept.decoding.steps)
    if kept.decoding is not None:
        add += n * m  # the bias
    cost = stl.cost(spec, LayerShape(k, m, n))
    assert (cost.multiplications, cost.additions, cost.lookups) == (mul, add, 0)
    params = stl.fit(spec, make_layer(k, m))
    assert cost.parameters == sum(p.numel() for name, p in params.items() if name != "out_features")
    assert cost.bytes == 4 * (cost.parameters + n * k + n * m)


@pytest.mark.parametrize("spec", EXACT, ids=str)
def test_programs_compute_the_bases(spec):
    kept = bases(spec)
    for program, matrix in ((kept.encoding, kept.encode), (kept.decoding, kept.decode)):
        assert program.computes(matrix)
        assert program.scalings == 0


def test_additions_of_winograds_form():
    two = bases(stl.Spec(2, 7, "winograd"))
    assert (two.encoding.additions, two.decoding.additions) == (4, 7)
    four = bases(stl.Spec(4, 49, "winograd2"))
    assert four.encoding.additions <= 46
    assert four.decoding.additions <= 77


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tile": 0}, "tile is 0"),
        ({"tile": 5}, "tile is 5"),
        ({"tile": 2.0}, "whole number"),
        ({"tile": True}, "whole number"),
        ({"rank": 0}, "rank is 0"),
        ({"rank": -3}, "rank is -3"),
        ({"rank": 49}, "use basis='winograd2' with rank=49"),
        ({"rank": 64}, "use basis='winograd2'"),
        ({"tile": 2, "rank": 7}, "use basis='winograd'"),
        ({"basis": "strasen"}, "did you mean 'strassen'"),
        ({"basis": None}, "name of a basis"),
        ({"sweeps": -1}, "sweeps is -1"),
        ({"sweeps": 1.5}, "whole number"),
        (
            {"tile": 2, "rank": 7, "basis": "winograd", "sweeps": 2},
            "bases of the exact scheme 'winograd' are not fitted",
        ),
        ({"tile": 4, "rank": 7, "basis": "strassen"}, "use tile=2"),
        ({"tile": 4, "rank": 48, "basis": "strassen2"}, "use rank=49"),
        ({"tile": 4, "rank": 24, "basis": "standard"}, "use rank=64"),
    ],
)
def test_bad_specs_raise_bad_input(fields, said):
    with pytest.raises(BadInput, match="(?i)" + said.replace("(", r"\(")):
        stl.Spec(**fields)


def test_a_spec_is_a_value():
    assert stl.Spec() == stl.Spec(4, 24, "approximate")
    assert spec_hash("stl", stl.Spec()) != spec_hash("stl", stl.Spec(rank=25))


class Trial:
    """The part of optuna's trial that is used, with random values."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def suggest_categorical(self, name, choices):
        return choices[self.rng.integers(len(choices))]

    def suggest_int(self, name, low, high):
        return int(self.rng.integers(low, high + 1))


def test_suggestions_cost_less_than_dense_and_vary():
    layer = make_layer(256, 512, samples=2, batch=256)
    specs = {stl.suggest(Trial(seed), layer, stl.Space()) for seed in range(40)}
    assert len(specs) > 8
    limit = 2 * 256 * 256 * 512
    assert all(stl.cost(spec, layer).flops <= limit for spec in specs)


def test_no_suggestion_where_every_basis_costs_more():
    with pytest.raises(BadInput, match="narrow"):
        stl.suggest(Trial(0), make_layer(6, 6, batch=8), stl.Space(most_flops=0.5))


def test_gradients_reach_bases_weights_and_inputs():
    spec = stl.Spec(2, 5)
    params = stl.fit(spec, make_layer(5, 3))
    torch_kernel = next(kernel for kernel in stl.KERNELS if kernel.name == "torch")
    names = ("weight", "encode", "decode", "bias")
    tensors = [params[name].clone().requires_grad_() for name in names]
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)

    def run(x, *tensors):
        own = {**params, **dict(zip(names, tensors, strict=True))}
        return torch_kernel.run(spec, torch_kernel.pack(spec, own), x)

    assert torch.autograd.gradcheck(run, (x, *tensors))


@pytest.mark.parametrize("spec", [stl.Spec(4, 24), stl.Spec(4, 40), stl.Spec(4, 49, "winograd2")], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tolerance_is_above_rounding_and_within_a_factor_of_it(spec, dtype):
    params = stl.fit(spec, make_layer(64, 48, samples=256, dtype=dtype))
    x = torch.randn(128, 64).to(dtype)
    kernel = stl.KERNELS[1]
    gap = relative_gap(kernel.run(spec, kernel.pack(spec, params), x), reference(spec, params, x))
    limit = tolerance(dtype, 64, kernel.growth(spec, params))
    assert gap < limit < 40 * gap
