"""Low-rank layers: the optimum of Eckart and Young on the layer's inputs, with singular moments, means, tiny layers."""

from __future__ import annotations

import dataclasses
from typing import Any

import optuna
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from basis_search.errors import BadInput
from basis_search.families import dense, lowrank
from basis_search.families.lowrank.fit import directions
from basis_search.families.lowrank.reference import reference
from basis_search.layers.input_mean import answered_mean
from basis_search.layers.layer import Layer
from basis_search.layers.output_metric import OutputMetric
from basis_search.layers.output_spectrum import covariance
from basis_search.layers.ridge import fitting_metric, input_ridge

pytestmark = pytest.mark.fast


def make_layer(
    in_features: int = 24,
    out_features: int = 18,
    samples: int = 200,
    *,
    bias: bool = True,
    weight: Tensor | None = None,
) -> Layer:
    """Correlated inputs with a large mean, in float64 so that optima can be compared closely."""
    draw = torch.Generator().manual_seed(in_features + out_features)
    mix = torch.randn(in_features, in_features, generator=draw, dtype=torch.float64)
    mix *= torch.logspace(0, -2, in_features, dtype=torch.float64)
    x = torch.randn(samples + 50, in_features, generator=draw, dtype=torch.float64) @ mix.T + 1.5
    made = torch.randn(out_features, in_features, generator=draw, dtype=torch.float64)
    return Layer(
        name="mlp.fc1",
        weight=made if weight is None else weight,
        bias=torch.randn(out_features, generator=draw, dtype=torch.float64) if bias else None,
        inputs=x[:samples],
        held_out=x[samples:],
        batch=8,
        dtype=torch.float64,
    )


def squared_error(layer: Layer, params: dict[str, Tensor], rank: int, x: Tensor) -> float:
    exact = x @ layer.weight.T + (0 if layer.bias is None else layer.bias)
    return float((reference(lowrank.Spec(rank), params, x) - exact).square().sum())


@pytest.mark.parametrize("shape", [(24, 18), (18, 24), (7, 30)])
@pytest.mark.parametrize("bias", [True, False])
def test_error_on_the_inputs_is_the_tail_of_the_singular_values(shape: tuple[int, int], bias: bool) -> None:
    layer = make_layer(*shape, bias=bias)
    x = layer.inputs - layer.inputs.mean(0) if bias else layer.inputs
    singular = torch.linalg.svdvals(x @ layer.weight.T)
    for rank in (1, 3, min(shape) - 1):
        params = lowrank.fit(lowrank.Spec(rank), layer)
        least = float(singular[rank:].square().sum())
        assert squared_error(layer, params, rank, layer.inputs) == pytest.approx(least, rel=1e-6)


def test_a_planted_rank_is_recovered_on_inputs_never_seen() -> None:
    draw = torch.Generator().manual_seed(5)
    weight = torch.randn(18, 4, generator=draw, dtype=torch.float64) @ torch.randn(
        4, 24, generator=draw, dtype=torch.float64
    )
    layer = make_layer(weight=weight)
    params = lowrank.fit(lowrank.Spec(4), layer)
    exact = float((layer.held_out @ weight.T).square().sum())
    assert squared_error(layer, params, 4, layer.held_out) < 1e-20 * exact
    less = lowrank.fit(lowrank.Spec(3), layer)
    assert squared_error(layer, less, 3, layer.held_out) > 1e-10 * exact


def test_it_beats_truncating_the_weight_alone() -> None:
    layer = make_layer()
    u, s, vh = torch.linalg.svd(layer.weight)
    assert layer.bias is not None
    plain = {"up": u[:, :6] * s[:6], "down": vh[:6], "bias": layer.bias}
    params = lowrank.fit(lowrank.Spec(6), layer)
    assert squared_error(layer, params, 6, layer.held_out) < 0.5 * squared_error(layer, plain, 6, layer.held_out)


def test_fewer_samples_than_features_are_fitted_exactly_and_other_directions_by_the_weight() -> None:
    layer = make_layer(24, 18, samples=5, bias=False)  # a singular second moment, of rank 5
    exact = float((layer.inputs @ layer.weight.T).square().sum())
    five = lowrank.fit(lowrank.Spec(5), layer)
    assert squared_error(layer, five, 5, layer.inputs) < 1e-12 * exact
    # The next columns are those that matter most for white inputs within what is left.
    ten = lowrank.fit(lowrank.Spec(10), layer)
    assert squared_error(layer, ten, 10, layer.inputs) < 1e-12 * exact
    unseen = torch.eye(24, dtype=torch.float64) - torch.linalg.pinv(layer.inputs) @ layer.inputs
    left = layer.weight - five["up"] @ five["down"]
    best = torch.linalg.svdvals(left @ unseen)[5:].square().sum()
    got = (layer.weight @ unseen - ten["up"] @ ten["up"].T @ layer.weight @ unseen).square().sum()
    assert float(got) == pytest.approx(float(best), rel=1e-3)


def test_a_moment_of_more_rows_than_the_layer_holds_fits_like_all_rows() -> None:
    many = make_layer(64, 40, samples=4000, bias=False)
    few = dataclasses.replace(many, inputs=many.inputs[:200])
    informed = dataclasses.replace(few, moment=many.second_moment.float())
    errors = [squared_error(of, lowrank.fit(lowrank.Spec(6), of), 6, many.inputs) for of in (many, informed, few)]
    assert errors[1] == pytest.approx(errors[0], rel=1e-5)
    assert errors[1] < 0.99 * errors[2]


def test_a_mean_of_few_rows_is_not_trusted_beyond_its_noise() -> None:
    many = make_layer(64, 40, samples=4000)
    informed = dataclasses.replace(many, inputs=many.inputs[:30], moment=many.second_moment)
    unbiased = dataclasses.replace(many, bias=None)
    params, without = lowrank.fit(lowrank.Spec(6), informed), lowrank.fit(lowrank.Spec(6), unbiased)
    centred = squared_error(many, params, 6, many.inputs)
    assert centred < 1.02 * squared_error(unbiased, without, 6, many.inputs)
    assert float(answered_mean(dataclasses.replace(informed, inputs=0 * informed.inputs)).norm()) == 0


def test_full_rank_and_constant_or_zero_inputs() -> None:
    layer = make_layer(6, 9)
    for inputs in (layer.inputs, torch.zeros(4, 6, dtype=torch.float64), torch.ones(4, 6, dtype=torch.float64)):
        same = dataclasses.replace(layer, inputs=inputs)
        full = lowrank.fit(lowrank.Spec(6), same)
        torch.testing.assert_close(full["up"] @ full["down"], layer.weight)
    assert layer.bias is not None
    constant = dataclasses.replace(layer, inputs=torch.ones(4, 6, dtype=torch.float64))
    one = lowrank.fit(lowrank.Spec(1), constant)  # the bias alone answers inputs that never change
    assert squared_error(constant, one, 1, constant.inputs) < 1e-20


def test_ranks_of_one_layer_are_nested_and_share_their_work() -> None:
    layer = make_layer()
    assert directions(layer, 3)[0] is directions(layer, 9)[0]
    small, large = lowrank.fit(lowrank.Spec(3), layer), lowrank.fit(lowrank.Spec(9), layer)
    assert torch.equal(large["up"][:, :3], small["up"])
    assert not torch.equal(
        directions(dataclasses.replace(layer, inputs=layer.inputs.flip(1)), 3)[0], directions(layer, 3)[0]
    )


def test_a_rank_beyond_the_layer_is_refused() -> None:
    with pytest.raises(BadInput, match=r"rank is 19, but layer 'mlp.fc1' is 18 x 24.*at most 18"):
        lowrank.fit(lowrank.Spec(19), make_layer())


@pytest.mark.parametrize("shape", [(24, 18), (64, 64), (512, 128), (2, 3), (3, 3), (5, 4), (128, 10)])
def test_every_suggested_rank_costs_less_than_dense_and_the_best_is_reached(shape: tuple[int, int]) -> None:
    layer = make_layer(*shape)
    full = dense.cost(dense.Spec(), layer).flops
    seen: set[int] = set()

    class Ends:
        """Plays an optuna trial that notes its bounds."""

        def suggest_int(self, name: str, low: int, high: int, step: int) -> int:
            assert (high - low) % step == 0
            seen.update(range(low, high + 1, step))
            return high

    spec = lowrank.suggest(Ends(), layer, lowrank.Space())
    assert all(lowrank.cost(lowrank.Spec(rank), layer).flops < full for rank in seen)
    step = min(b - a for a, b in zip(sorted(seen), sorted(seen)[1:], strict=False)) if len(seen) > 1 else 1
    assert lowrank.cost(lowrank.Spec(spec.rank + step), layer).flops >= full
    lowrank.fit(spec, layer)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_layers_where_rank_one_saves_nothing_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(BadInput, match="rank 1 costs as much"):
        lowrank.suggest(optuna.trial.FixedTrial({"rank": 1}), make_layer(*shape), lowrank.Space())


def test_the_space_bounds_the_ranks() -> None:
    layer = make_layer(64, 64)
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(0)).ask()
    assert lowrank.suggest(trial, layer, lowrank.Space(step=5, highest=5)).rank == 5
    for space in (lowrank.Space(step=0), lowrank.Space(highest=0)):
        with pytest.raises(BadInput, match="at least 1"):
            lowrank.suggest(trial, layer, space)


@pytest.mark.parametrize("rank", [0, -3, 2.0, "8", None, True])
def test_spec_refuses_all_but_positive_integers(rank: object) -> None:
    with pytest.raises(BadInput, match="rank is"):
        lowrank.Spec(rank=rank)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "spec"), [(dense, dense.Spec()), (lowrank, lowrank.Spec(5))])
def test_cost_agrees_with_the_operations_that_torch_counts(family: Any, spec: Any) -> None:
    layer = Layer("counted", torch.randn(29, 37), torch.randn(29), torch.randn(80, 37), torch.randn(8, 37), 11)
    kernel = family.KERNELS[1]
    packed = kernel.pack(spec, family.fit(spec, layer))
    with FlopCounterMode(display=False) as counter:
        kernel.run(spec, packed, torch.randn(11, 37))
    assert family.cost(spec, layer).flops == counter.get_total_flops()


def in_a_metric(layer: Layer, directions: int, seed: int = 3) -> Layer:
    """With an output metric of that many directions, of unequal weights, and a rest."""
    draw = torch.Generator().manual_seed(seed)
    factor = torch.randn(layer.out_features, directions, generator=draw, dtype=torch.float64)
    factor *= torch.logspace(0.5, -1.5, directions, dtype=torch.float64)
    metric = OutputMetric(factor @ factor.T + 1e-3 * torch.eye(layer.out_features, dtype=torch.float64))
    return dataclasses.replace(layer, output_metric=metric)


def weighted_error(layer: Layer, params: dict[str, Tensor], metric: OutputMetric, moment: Tensor) -> float:
    return float(metric.damage(layer.weight.double() - params["up"].double() @ params["down"].double(), moment))


@pytest.mark.parametrize("shape", [(24, 18), (18, 24)])
@pytest.mark.parametrize("bias", [True, False])
def test_no_map_of_the_rank_is_nearer_in_the_output_metric(shape: tuple[int, int], bias: bool) -> None:
    layer = in_a_metric(make_layer(*shape, bias=bias), 9)
    metric, ridge = fitting_metric(layer), input_ridge(layer)
    assert metric is not None
    assert ridge is not None
    spread = covariance(layer)
    spread = spread + (1e-10 * layer.second_moment + ridge * spread).trace() / len(spread) * torch.eye(len(spread))
    singular = torch.linalg.svdvals(metric.root(0.0).transposed_times(layer.weight) @ torch.linalg.cholesky(spread))
    for rank in (1, 3, 11):
        params = lowrank.fit(lowrank.Spec(rank), layer)
        error = weighted_error(layer, params, metric, spread)
        assert error == pytest.approx(float(singular[rank:].square().sum()), rel=1e-6)
        torch.testing.assert_close(params["up"].norm(dim=0), torch.ones(rank, dtype=torch.float64))
        if bias:
            x = layer.inputs.mean(0)
            torch.testing.assert_close(reference(lowrank.Spec(rank), params, x), x @ layer.weight.T + layer.bias)


@pytest.mark.parametrize("directions", [1, 9])
@pytest.mark.parametrize("shape", [(24, 18), (18, 24), (40, 4)])
def test_the_weighted_error_is_below_the_unweighted_fit_s(shape: tuple[int, int], directions: int) -> None:
    plain = make_layer(*shape)
    layer = in_a_metric(plain, directions)
    assert layer.output_metric is not None
    for rank in (1, 3):
        errors = [
            weighted_error(of, lowrank.fit(lowrank.Spec(rank), of), layer.output_metric, covariance(plain))
            for of in (plain, layer)
        ]
        assert errors[1] < 0.9 * errors[0]


def test_a_planted_rank_is_recovered_in_an_output_metric() -> None:
    draw = torch.Generator().manual_seed(5)
    weight = torch.randn(18, 4, generator=draw, dtype=torch.float64) @ torch.randn(
        4, 24, generator=draw, dtype=torch.float64
    )
    layer = in_a_metric(make_layer(weight=weight), 2)
    params = lowrank.fit(lowrank.Spec(4), layer)
    torch.testing.assert_close(params["up"] @ params["down"], weight, rtol=0, atol=1e-9)
    less = lowrank.fit(lowrank.Spec(3), layer)
    assert float((less["up"] @ less["down"] - weight).norm()) > 1e-2


def test_a_metric_that_weighs_nothing_changes_no_fit() -> None:
    layer = make_layer()
    plain = lowrank.fit(lowrank.Spec(5), layer)
    for factor in (0.0, 1.0, 7.0):
        same = dataclasses.replace(layer, output_metric=OutputMetric(factor * torch.eye(18)))
        for name, tensor in lowrank.fit(lowrank.Spec(5), same).items():
            torch.testing.assert_close(tensor, plain[name])


def test_a_wide_metric_of_a_rest_and_directions_gives_the_fit_of_its_matrix() -> None:
    layer = make_layer(18, 24)
    draw = torch.Generator().manual_seed(1)
    factor = torch.randn(24, 3, generator=draw, dtype=torch.float64)
    thin = OutputMetric(rest=torch.linspace(0.0, 1.0, 24, dtype=torch.float64), factor=factor)
    fits = [
        lowrank.fit(lowrank.Spec(5), dataclasses.replace(layer, output_metric=metric))
        for metric in (thin, OutputMetric(thin.dense()))
    ]
    torch.testing.assert_close(fits[0]["up"] @ fits[0]["down"], fits[1]["up"] @ fits[1]["down"])
