"""Damages against measured changes of the output: a linear model, whose metrics are known in closed form."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import basis_search as bs
from basis_search.bench.model.plan_damage import SHARES, plan_damages, rank_correlation
from basis_search.bench.model.small_network import output_metrics
from basis_search.evaluation.evaluate import evaluate
from basis_search.layers.collection import Layers
from basis_search.layers.output_metric import OutputMetric


class Linear(nn.Module):
    """y = W_2 W_1 x, and a layer that the output does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(12, 16, bias=False), nn.Linear(16, 8, bias=False)
        self.unused = nn.Linear(16, 8)
        with torch.no_grad():  # few outputs of the first layer matter to the second
            self.second.weight *= torch.linspace(1.5, 0, 16) ** 3

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        y: Tensor = self.second(hidden) + 0 * self.unused(hidden)
        return y


def inputs(seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(4000, 12, generator=draw) * torch.linspace(2, 0.1, 12)


def with_metrics(model: Linear) -> Layers:
    W = model.second.weight.detach()
    metrics = {"first": W.T @ W, "second": torch.eye(8), "unused": torch.zeros(8, 8)}
    layers = bs.capture(model, list(inputs(1).split(500)))
    return Layers(tuple(replace(layer, output_metric=OutputMetric(metrics[layer.name])) for layer in layers))


def test_metrics_by_their_definition_are_those_in_closed_form() -> None:
    model = Linear()
    found = output_metrics(model, [inputs(1)], probes=8)
    W = model.second.weight.detach().double()
    assert float((found["first"] - W.T @ W).norm() / (W.T @ W).norm()) < 0.03
    assert float((found["second"] - torch.eye(8)).norm()) < 0.05 * 8**0.5
    assert float(found["unused"].abs().max()) == 0


def test_the_damage_of_one_layer_is_the_squared_change_of_the_output() -> None:
    model = Linear()
    layers, x = with_metrics(model), inputs(2)
    for name in ("first", "second"):
        found = evaluate(layers[name], "lowrank", bs.lowrank.Spec(rank=3), seconds=0.001)
        plan = bs.Plan({"flops": 1.0}, {name: found}, {}, {name: layers[name]})
        with torch.no_grad():
            change = (model(x) - bs.apply_(Linear(), plan)(x)).square().sum(1).mean()
        assert found.damage == pytest.approx(float(change), rel=0.1)
    with torch.no_grad():
        power = float(model(x).square().sum(1).mean())
    assert layers["first"].metric_sensitivity == pytest.approx(power, rel=0.05)  # without the layer the output is 0


def test_a_layer_without_influence_takes_any_candidate() -> None:
    layers = with_metrics(Linear())
    with pytest.warns(UserWarning, match="output does not depend on unused.*the cheapest candidate is as good as any"):
        front = bs.search(layers["unused"], ("dense", "lowrank"), trials=3)
    assert {(e.weighted_error, e.damage) for e in front.evaluations} == {(0.0, 0.0)}
    assert front.evaluations[0].flops_ratio < 1
    assert front.evaluations[0].error > 0.01
    assert bs.plan([front], {"flops": 0.9, "latency": float("inf")}).damage == 0


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_summed_damages_order_random_plans() -> None:
    model = Linear()
    layers = with_metrics(model)
    table = {
        layer.name: [evaluate(layer, "lowrank", bs.lowrank.Spec(rank), seconds=0.001) for rank in range(1, 8)]
        for layer in layers.select(["first", "second"])
    }
    *by_share, every = plan_damages(model, layers, table, lambda m, x: m(x), [inputs(2)], plans=24)
    assert len(by_share) == len(SHARES)
    assert every["plans"] == 24
    assert every["rank correlation"] > 0.9
    assert 0.7 < every["measured / predicted"] < 1.4
    with pytest.raises(bs.BadInput, match="'first' has no evaluation with a damage"):
        plan_damages(model, layers, {"first": [replace(table["first"][0], damage=None)]}, lambda m, x: m(x), [])


def test_rank_correlation_is_spearmans() -> None:
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randint(0, 9, (2, 40), generator=draw).double().tolist()  # with ties
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert rank_correlation(a, [2 * x for x in a]) == pytest.approx(1)
