"""The six orders of bases: all approximate the product equally well; the layer's inputs determine the best."""

import pytest
import torch

from basis_search.families import stl
from basis_search.families.stl.bases import bases
from basis_search.families.stl.basis_orders import best_order, reorderings
from basis_search.families.stl.normal_equations import TileProblem
from basis_search.schemes.numerical.least_squares import product_tensor, residual

pytestmark = pytest.mark.fast


def a_problem(size, decay, seed=0, free_bias=False):
    g = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(size, size, generator=g, dtype=torch.float64))[0]
    covariance = axes * torch.arange(1, size + 1, dtype=torch.float64) ** (-2 * decay) @ axes.T
    weight = torch.randn(size, size, generator=g, dtype=torch.float64)
    return TileProblem.of(4, weight, weight.new_zeros(size), covariance, free_bias)


@pytest.mark.parametrize("spec", [stl.Spec(4, 24), stl.Spec(2, 5), stl.Spec(2, 7, "winograd")], ids=str)
def test_every_order_multiplies_equally_well(spec):
    kept = bases(spec)
    orders = reorderings(kept.encode, kept.encode_weight, kept.decode.T, spec.tile)
    assert len(orders) == 6
    assert torch.equal(orders[0][0], kept.encode)
    T = product_tensor(spec.tile, spec.tile, spec.tile)
    left = [residual(T, tuple(factor.numpy() for factor in order)) for order in orders]
    assert left == pytest.approx([left[0]] * 6, rel=1e-9, abs=1e-20)


@pytest.mark.parametrize("free_bias", [True, False])
def test_the_best_order_on_a_part_is_near_the_best_on_the_whole(free_bias):
    problem, kept = a_problem(96, 0.7, free_bias=free_bias), bases(stl.Spec(4, 24))
    orders = reorderings(kept.encode, kept.encode_weight, kept.decode.T, 4)
    every = [problem.solve(U, W.T.contiguous())[1] for U, _, W in orders]
    E, D = best_order(problem, kept.encode, kept.encode_weight, kept.decode)
    assert problem.solve(E, D)[1] < 1.1 * min(every)
    assert max(every) > 1.3 * min(every)


def test_layers_smaller_than_the_sample_and_of_odd_sizes():
    kept = bases(stl.Spec(4, 24))
    weight = torch.randn(5, 9, dtype=torch.float64)
    problem = TileProblem.of(4, weight, torch.zeros(9, dtype=torch.float64), torch.eye(9, dtype=torch.float64), True)
    E, D = best_order(problem, kept.encode, kept.encode_weight, kept.decode)
    assert E.shape == (24, 16)
    assert D.shape == (16, 24)
