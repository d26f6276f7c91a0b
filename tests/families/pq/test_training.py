"""Straight-through training of product-quantised layers."""

import pytest
import torch

from basis_search.errors import BadInput
from basis_search.families import pq
from basis_search.families.pq.reference import reference
from basis_search.families.protocol import relative_gap
from basis_search.layers.layer import Layer

pytestmark = pytest.mark.fast


def layer(width: int = 12, out: int = 6) -> Layer:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(1200, 5, generator=draw) @ torch.randn(5, width, generator=draw)
    weight, bias = torch.randn(out, width, generator=draw), torch.randn(out, generator=draw)
    return Layer("planted", weight, bias, x[:900], x[900:], 4)


@pytest.mark.parametrize("table", ["uint8", "float32"])
def test_its_outputs_are_those_of_its_parameters(table: str) -> None:
    given, spec = layer(), pq.Spec(3, "tree", table)
    module = pq.TrainableProduct(spec, pq.fit(spec, given), given.inputs)
    with torch.no_grad():  # away from the fit, so that tables are stored anew
        module.thresholds.add_(0.1)
        module.table.add_(0.3 * torch.randn(module.table.shape, generator=torch.Generator().manual_seed(1)))
    y = module(given.held_out.view(3, 100, -1))
    assert y.shape == (3, 100, 6)
    assert relative_gap(y.view(300, -1), reference(spec, module.params(), given.held_out)) < 1e-6


def test_gradients_reach_thresholds_tables_bias_and_the_input() -> None:
    given, spec = layer(), pq.Spec(3)
    module = pq.TrainableProduct(spec, pq.fit(spec, given), given.inputs)
    x = given.inputs[:50].clone().requires_grad_()
    module(x).square().sum().backward()
    split = torch.unique(module.split_columns.long())
    assert x.grad is not None
    assert bool((x.grad[:, split].abs().sum(0) > 0).all())
    for parameter in module.parameters():
        assert parameter.grad is not None
        assert bool(parameter.grad.abs().sum() > 0)
        assert bool(parameter.grad.isfinite().all())


def test_the_gradient_of_a_threshold_has_the_sign_of_the_change() -> None:
    """Rows above the threshold get 1, rows below 0: raising it lowers the mean output."""
    spec = pq.Spec(1, "tree", "float32")
    table = torch.zeros(1, 16, 1)
    table[:, 8:] = 1
    params = {"split_columns": torch.zeros(1, 4, dtype=torch.int32), "thresholds": torch.zeros(1, 15), "table": table}
    x = torch.linspace(-1, 1, 201)[:, None]
    module = pq.TrainableProduct(spec, params, x)
    module(x).mean().backward()
    assert module.thresholds.grad is not None
    assert float(module.thresholds.grad[0, 0]) < 0


@pytest.mark.slow
def test_training_repairs_thresholds_and_tables() -> None:
    given, spec = layer(), pq.Spec(2)
    module = pq.TrainableProduct(spec, pq.fit(spec, given), given.inputs)
    assert given.bias is not None
    exact = given.held_out @ given.weight.T + given.bias

    def error() -> float:
        return relative_gap(reference(spec, module.params(), given.held_out), exact)

    fitted = error()
    with torch.no_grad():
        module.thresholds.add_(0.5 * module.width)
        module.table.add_(3 * torch.randn(module.table.shape, generator=torch.Generator().manual_seed(1)))
    before, optimiser = error(), torch.optim.Adam(module.parameters(), lr=0.1)
    wanted = given.inputs @ given.weight.T + given.bias
    for _ in range(60):
        optimiser.zero_grad()
        (module(given.inputs) - wanted).square().mean().backward()
        optimiser.step()
    assert before > 1.2 * fitted
    assert error() - fitted < 0.5 * (before - fitted)


def test_what_cannot_be_trained_is_named() -> None:
    given = layer()
    for spec in (pq.Spec(2, "kmeans"), pq.Spec(2, sums="averaged")):
        with pytest.raises(BadInput, match="cannot be trained"):
            pq.TrainableProduct(spec, pq.fit(spec, given), given.inputs)
