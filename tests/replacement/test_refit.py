"""Refit in forward order, validation of the front, and distillation."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

import basis_search as bs
from basis_search.replacement.refit import refit
from basis_search.replacement.validate import front


class Deep(nn.Module):
    """Its layers are listed in another order than they run."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last = nn.Linear(24, 8)
        self.middle = nn.Linear(24, 24)
        self.first = nn.Linear(24, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(self.middle(self.first(x).relu()).relu())
        return y


def inputs(seed: int, rows: int = 256) -> torch.Tensor:
    mixing = torch.randn(24, 24, generator=torch.Generator().manual_seed(9)) * torch.arange(1, 25) ** -0.7
    return torch.randn(rows, 24, generator=torch.Generator().manual_seed(seed)) @ mixing.T


BATCHES = [inputs(seed) for seed in range(4)]
UNSEEN = inputs(99, 1024)


def low_rank_plan(model: nn.Module, rank: int = 5) -> bs.Plan:
    layers = bs.capture(model, BATCHES)
    fronts = {}
    for layer in layers:
        front = bs.search(layer, ("lowrank",), trials=1)
        spec = bs.lowrank.Spec(rank=rank)
        chosen = dataclasses.replace(front.evaluations[0], candidate=bs.Candidate(layer.name, "lowrank", spec))
        fronts[layer.name] = bs.ParetoFront((chosen,), layer)
    return bs.plan(fronts, {"flops": 10.0, "latency": math.inf})


def error(model: nn.Module, dense: nn.Module) -> float:
    with torch.no_grad():
        return float((model(UNSEEN) - dense(UNSEEN)).square().sum() / dense(UNSEEN).square().sum())


def test_a_refit_lowers_the_models_error_and_compensation_lowers_it_further() -> None:
    model = Deep().eval()
    plan = low_rank_plan(model)
    alone = error(bs.apply_(copy.deepcopy(model), plan), model)
    to_own = error(refit(copy.deepcopy(model), plan, BATCHES, compensate=False), model)
    to_dense = error(refit(copy.deepcopy(model), plan, BATCHES), model)
    assert to_dense < to_own < alone
    assert not any(isinstance(m, bs.StructuredLinear) for m in model.modules())


def test_each_layer_is_fitted_to_the_outputs_of_the_replaced_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    from basis_search.replacement import refit as sequential

    model, seen = Deep().eval(), dict[str, bs.Layer]()
    plan = low_rank_plan(model)
    plain = sequential.fit
    monkeypatch.setattr(sequential, "fit", lambda layer, *a: seen.setdefault(layer.name, layer) and plain(layer, *a))
    replaced = refit(copy.deepcopy(model), plan, BATCHES, samples=10_000)
    assert list(seen) == ["first", "middle", "last"]  # in forward order
    fitted = torch.cat([b[:192] for b in BATCHES])
    assert torch.equal(seen["first"].inputs, fitted)
    assert torch.equal(seen["first"].weight, model.first.weight.detach())  # no error to correct yet
    with torch.no_grad():
        torch.testing.assert_close(seen["middle"].inputs, replaced.first(fitted).relu())
        # W* is close to the dense layer that best approximates the dense outputs on the new inputs.
        x, wanted = seen["middle"].inputs.double(), model.first(fitted).relu().double() @ model.middle.weight.double().T
        shift = (seen["middle"].bias - model.middle.bias).double()
        own = float((x @ model.middle.weight.double().T - wanted).square().sum())
        best = float((x @ seen["middle"].weight.double().T + shift - wanted).square().sum())
        affine = torch.cat([x, torch.ones(len(x), 1)], 1)
        least = float((affine @ torch.linalg.lstsq(affine, wanted).solution - wanted).square().sum())
        assert least <= best
        assert best - least < 0.3 * (own - least)  # the ridge term costs a part


@pytest.mark.parametrize("examples", [6, 1])
def test_no_example_is_fitted_to_and_held_out(examples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each example repeats one row: a row in both samples comes from an example that was split."""
    from basis_search.replacement import refit as module

    model, seen = Deep().eval(), list[bs.Layer]()
    plan = low_rank_plan(model)
    plain = module.fit
    monkeypatch.setattr(module, "fit", lambda layer, *a: seen.append(layer) or plain(layer, *a))
    batches = [inputs(seed, examples)[:, None].expand(-1, 7, -1) for seed in range(4)]
    refit(model, plan, batches)
    assert len(seen) == 3
    for layer in seen:
        fitted = {tuple(row) for row in layer.inputs.tolist()}
        assert fitted
        assert not fitted & {tuple(row) for row in layer.held_out.tolist()}


def test_a_refit_never_ends_farther_from_the_dense_model_than_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits that make nonsense of every second layer are not kept."""
    from basis_search.replacement import refit as module

    model = Deep().eval()
    plan = low_rank_plan(model)
    alone, good, plain = bs.apply_(copy.deepcopy(model), plan), refit(copy.deepcopy(model), plan, BATCHES), module.fit

    def damaged(layer: bs.Layer, *a: object) -> bs.StructuredLinear:
        broken = dataclasses.replace(layer, weight=torch.randn_like(layer.weight) * 3)
        return plain(layer if layer.name == "middle" else broken, *a)

    monkeypatch.setattr(module, "fit", damaged)
    kept = refit(copy.deepcopy(model), plan, BATCHES)
    assert error(good, model) < error(kept, model) < error(alone, model)
    for name in ("first", "last"):
        for ours, begun in zip(
            kept.get_submodule(name).parameters(), alone.get_submodule(name).parameters(), strict=True
        ):
            assert torch.equal(ours, begun)
    without = dataclasses.replace(plan, layers={})  # as read from a file
    monkeypatch.setattr(module, "fit", plain)
    assert error(refit(copy.deepcopy(model), without, BATCHES), model) < error(alone, model)


def test_the_output_decides_what_a_refit_and_a_distillation_bring_closer() -> None:
    """Half of the model's outputs count for nothing."""
    model = Deep().eval()
    plan = low_rank_plan(model, rank=3)
    state: list[torch.Tensor] = []

    def half(m: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = m(batch)[:, :4]
        state.append(y)
        return y

    def half_error(m: nn.Module) -> float:
        with torch.no_grad():
            ours, dense = half(m, UNSEEN), half(model, UNSEEN)
            return float((ours - dense).square().sum() / dense.square().sum())

    alone = bs.apply_(copy.deepcopy(model), plan)
    refitted = refit(copy.deepcopy(model), plan, BATCHES, output=half)
    assert half_error(refitted) < half_error(alone)
    by_half, by_all = copy.deepcopy(refitted), copy.deepcopy(refitted)
    bs.distill(by_half, model, BATCHES, epochs=30, learning_rate=3e-3, output=half)
    bs.distill(by_all, model, BATCHES, epochs=30, learning_rate=3e-3)
    assert half_error(by_half) < half_error(by_all)
    assert half_error(by_half) < half_error(refitted)
    with pytest.raises(bs.BadInput, match=r"the output is a tensor of torch\.int64, but a floating tensor is needed"):
        refit(copy.deepcopy(model), plan, BATCHES, output=lambda m, b: m(b).argmax(-1))


def test_a_refit_uses_the_output_metric_and_moments_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    from basis_search.layers.output_metric import OutputMetric
    from basis_search.replacement import refit as module

    model, seen = Deep().eval(), dict[str, bs.Layer]()
    plan = low_rank_plan(model)
    metric = {n: OutputMetric(torch.diag(torch.rand(len(layer.weight)))) for n, layer in plan.layers.items()}
    layers = {n: dataclasses.replace(layer, output_metric=metric[n]) for n, layer in plan.layers.items()}
    plain = module.fit
    monkeypatch.setattr(module, "fit", lambda layer, *a: seen.setdefault(layer.name, layer) and plain(layer, *a))
    refit(copy.deepcopy(model), dataclasses.replace(plan, layers=layers), BATCHES, samples=40, compensate=False)
    rows = torch.cat([b[:192] for b in BATCHES]).double()
    torch.testing.assert_close(seen["first"].moment, (rows.T @ rows / len(rows)).float())
    assert all(layer.output_metric is metric[name] for name, layer in seen.items())


def test_a_refit_refuses_bad_input() -> None:
    model = Deep().eval()
    plan = low_rank_plan(model)
    with pytest.raises(bs.BadInput, match="no batch"):
        refit(copy.deepcopy(model), plan, [])
    with pytest.raises(bs.BadInput, match="no dense layer 'last'"):
        refit(nn.Sequential(nn.Linear(24, 24)), plan, BATCHES)
    with pytest.raises(bs.BadInput, match="at least 2 examples"):
        refit(copy.deepcopy(model), plan, [inputs(0, 1)])


def test_only_plans_that_no_other_dominates_are_validated(evaluation: Callable[..., bs.Evaluation]) -> None:
    model = Deep().eval()
    plan = low_rank_plan(model)

    def worse(error: float, ratio: float) -> bs.Plan:
        choices = {
            name: dataclasses.replace(e, error=error, latency=ratio * 1e-3, latency_ratio=ratio)
            for name, e in plan.choices.items()
        }
        return dataclasses.replace(plan, choices=choices)

    good, fast, bad, twin = worse(0.1, 0.5), worse(0.3, 0.4), worse(0.4, 0.6), worse(0.1, 0.5)
    assert front([bad, good, fast, twin]) == [good, fast]
    metrics: list[float] = []

    def metric(m: nn.Module) -> float:
        metrics.append(error(m, model))
        return metrics[-1]

    found = bs.validate(model, [bad, good, fast, twin], metric)
    assert [v.plan for v in found] == [good, fast]
    assert len(metrics) == 3  # the dense model, and two plans
    assert metrics[0] == 0.0 == found[0].dense
    assert found[0].metric == metrics[1] > 0
    again = bs.validate(model, [good], metric, replace=lambda m, p: refit(m, p, BATCHES))
    assert again[0].metric < found[0].metric


def test_validation_measures_uniform_assignments_and_says_when_one_wins() -> None:
    model = Deep().eval()
    plan = low_rank_plan(model, rank=1)
    fronts = {}
    for name, chosen in plan.choices.items():
        int8 = dataclasses.replace(chosen, candidate=bs.Candidate(name, "int8", bs.int8.Spec()), error=0.01)
        # a predicted damage of nothing is wrong for rank 1
        fronts[name] = bs.ParetoFront((dataclasses.replace(chosen, error=0.0), int8), plan.layers[name])
    budgets = [{"flops": 10.0, "latency": math.inf}, {"flops": 20.0, "latency": math.inf}]
    chosen = [bs.plan(fronts, budget) for budget in budgets]
    calls: list[float] = []

    def metric(m: nn.Module) -> float:
        calls.append(error(m, model))
        return calls[-1]

    with pytest.warns(
        UserWarning, match=r"int8 \(reduce_range True\) everywhere, within the same budget, has the metric"
    ):
        (found,) = bs.validate(model, chosen, metric)
    assert len(calls) == 3  # dense, the plan and the uniform assignment
    assert [u.label for u in found.uniform] == ["int8 (reduce_range True) everywhere"]
    assert found.beaten_by is not None
    assert found.beaten_by.metric == calls[2] < found.metric == calls[1]
    assert bs.validate(model, chosen[:1], metric, uniform=0)[0].beaten_by is None


def test_distillation_ends_in_the_state_closest_to_the_teacher() -> None:
    model = Deep().eval()
    student = bs.apply_(copy.deepcopy(model), low_rank_plan(model))
    before = error(student, model)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    distance = bs.distill(student, model, [*BATCHES, inputs(50)], epochs=20, learning_rate=3e-3)
    assert error(student, model) < 0.9 * before
    assert distance > 0
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    best = {k: v.clone() for k, v in student.state_dict().items()}
    bs.distill(
        student, model, BATCHES, epochs=1, learning_rate=1e3
    )  # too large a rate: every epoch is worse than the start
    assert all(torch.equal(v, best[k]) for k, v in student.state_dict().items())
    with pytest.raises(bs.BadInput, match="1 batches were given"):
        bs.distill(student, model, BATCHES[:1])
    with pytest.raises(bs.BadInput, match="no parameter that trains"):
        bs.distill(student.requires_grad_(False), model, BATCHES)
