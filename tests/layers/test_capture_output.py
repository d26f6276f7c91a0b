"""capture(output=): output metrics against closed forms and finite differences, padding, checkpointing, refusals."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from fake_cuda_devices import FakeCuda
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import basis_search as bs
from basis_search.layers.layer import Layer
from basis_search.layers.metric_sums import SketchedMoment

pytestmark = pytest.mark.fast


def linears(*widths: int, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(a, b, dtype=dtype) for a, b in pairwise(widths)))


def inputs(count: int, *shape: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(*shape, generator=generator, dtype=dtype) for _ in range(count)]


def G(layer: Layer) -> Tensor:
    assert layer.output_metric is not None
    return layer.output_metric.dense()


def output(model: nn.Module, batch: Any) -> Tensor:
    found: Tensor = model(batch)
    return found


def test_two_linear_layers_have_the_metric_of_the_closed_form() -> None:
    """Of the last layer E[sum over 5 rows of v v^T] = 5 I, of the first W^T G W, for the same v exactly."""
    model = linears(6, 8, 3)
    layers = bs.capture(model, inputs(20, 16, 5, 6), output=True, probes=4)
    weight = model[1].weight.detach()
    torch.testing.assert_close(G(layers["0"]), weight.T @ G(layers["1"]) @ weight, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(G(layers["1"]), 5 * torch.eye(3).double(), rtol=0, atol=5 * 0.06)  # 6,400 rows
    first = model[0].weight.detach()
    expected = torch.trace(G(layers["0"]) @ first @ layers["0"].second_moment @ first.T)
    assert layers["0"].metric_sensitivity == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("hidden", [nn.Tanh(), nn.GELU()])
def test_damage_predicts_the_change_of_the_output(hidden: nn.Module) -> None:
    """For one row per example and random small dW, within 0.3: large rows have other gradients than small ones."""
    first, second, third = linears(6, 12, 10, 4)
    model, x = nn.Sequential(first, hidden, second, hidden, third), torch.cat(inputs(4, 500, 6))
    layers = bs.capture(model, list(x.split(500)), samples=10_000, output=output, probes=8)
    draw = torch.Generator().manual_seed(3)
    for name in ("0", "2", "4"):
        layer, weight = layers[name], model.get_parameter(f"{name}.weight")
        assert layer.output_metric is not None
        for _ in range(4):
            difference = 1e-3 * torch.randn(weight.shape, generator=draw, dtype=torch.float64)
            before = weight.detach().clone()
            with torch.no_grad():
                clean = model(x)
                weight += difference
                measured = float((model(x) - clean).square().sum(1).mean())
                weight.copy_(before)
            assert float(layer.output_metric.damage(difference, layer.second_moment)) == pytest.approx(
                measured, rel=0.3
            )


def test_labels_of_the_softmax_give_the_fisher_matrix() -> None:
    """E[diag(p) - p p^T] at logits, for every kind of output that is logits."""

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = linears(6, 4)[0]

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"loss": torch.zeros((), dtype=x.dtype), "logits": self.head(x)}

    model, batches = Classifier(), inputs(8, 250, 6)
    with torch.no_grad():
        p = torch.softmax(model.head(torch.cat(batches)), -1)
    fisher = torch.diag(p.mean(0)) - p.T @ p / len(p)
    named = bs.capture(model, batches, output=True, probes=8)["head"]
    torch.testing.assert_close(G(named), fisher, rtol=0, atol=0.02)
    asked = bs.capture(model.head, batches, output=output, likelihood="softmax", probes=8)[""]
    assert torch.equal(G(asked), G(named))
    squared = bs.capture(model, batches, output=True, likelihood="normal")["head"]
    torch.testing.assert_close(G(squared), torch.eye(4).double(), rtol=0, atol=0.15)


class Twice(nn.Module):
    """One weight, called twice: by one module, or by two."""

    def __init__(self, modules: int):
        super().__init__()
        self.first = linears(6, 3)[0]
        self.second = self.first if modules == 1 else nn.Linear(6, 3)
        self.second.weight, self.second.bias = self.first.weight, self.first.bias

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.first(x) + self.second(2 * x)
        return y


@pytest.mark.parametrize("modules", [1, 2])
def test_calls_of_one_weight_add_up(modules: int) -> None:
    model, batches = Twice(modules), inputs(3, 8, 6)
    twice = bs.capture(model, batches, output=True)["first"]
    assert twice.calls == 2
    once = bs.capture(model.first, batches, output=True)[""]
    torch.testing.assert_close(G(twice), 2 * G(once), rtol=1e-6, atol=1e-9)


class Checkpointed(nn.Module):
    """A frozen embedding, then two layers that run again in the backward pass."""

    def __init__(self, reentrant: bool | None):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(10, 6)
        self.body, self.head, self.reentrant = linears(6, 8, 6, dtype=torch.float32), nn.Linear(6, 2), reentrant

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = self.body(x) if self.reentrant is None else checkpoint(self.body, x, use_reentrant=self.reentrant)
        y: Tensor = self.head(torch.tanh(x))
        return y


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("probes", [1, 2])
def test_checkpointed_layers_count_each_row_once(reentrant: bool, probes: int) -> None:
    ids = [torch.randint(10, (8, 5), generator=torch.Generator().manual_seed(s)) for s in range(3)]
    expected = bs.capture(Checkpointed(None), ids, samples=20, output=True, probes=probes)
    found = bs.capture(Checkpointed(reentrant), ids, samples=20, output=True, probes=probes)
    for layer, other in zip(found, expected, strict=True):
        assert (layer.calls, layer.batch) == (other.calls, other.batch)
        assert torch.equal(layer.inputs, other.inputs)
        torch.testing.assert_close(layer.moment, other.moment)
        torch.testing.assert_close(G(layer), G(other), rtol=1e-5, atol=1e-8)


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(linears(6, 8, dtype=torch.float32), nn.Dropout(0.5), nn.Linear(8, 2))
    model.train()
    model[0].eval()
    model[2].bias.requires_grad_(False)
    model[2].weight.grad = torch.ones(2, 8)
    x = inputs(2, 8, 6, dtype=torch.float32)
    with torch.inference_mode():
        layers = bs.capture(model, x, output=output, loss=lambda m, b: m(b).square().mean(), sensitivity="gradient")
    assert [m.training for m in model.modules()] == [True, False, False, True, True]
    assert [p.requires_grad for p in model.parameters()] == [True, True, True, False]
    assert torch.equal(model[2].weight.grad, torch.ones(2, 8))
    assert not any(m._forward_hooks for m in model.modules())
    assert all(layer.output_metric is not None for layer in layers)


def test_a_loss_beside_an_output_measures_no_noise() -> None:
    model, batches = linears(6, 8, 3), inputs(3, 8, 6)
    calls: list[int] = []
    layers = bs.capture(model, batches, loss=lambda m, b: calls.append(1) or m(b).square().mean(), output=output)
    assert len(calls) == len(batches)
    assert all(layer.sensitivity == 1 and layer.gradient_moment is not None for layer in layers)
    alone = bs.capture(model, batches, output=output)
    for layer, other in zip(layers, alone, strict=True):
        assert torch.equal(G(layer), G(other))
        assert torch.equal(layer.inputs, other.inputs)


@pytest.mark.slow
def test_wide_outputs_keep_a_diagonal_and_directions() -> None:
    model = linears(4, 8200, 3, dtype=torch.float32)
    layers = bs.capture(model, inputs(4, 16, 4, dtype=torch.float32), output=True)
    metric, weight = layers["0"].output_metric, model[1].weight.detach()
    assert metric is not None
    assert metric.matrix is None
    x = torch.randn(8200, 5, generator=torch.Generator().manual_seed(2))
    expected = weight.T @ (G(layers["1"]).float() @ (weight @ x))
    assert float((metric.times(x) - expected).norm()) < 1e-3 * float(expected.norm())


def test_a_sketch_is_never_above_the_sum_and_keeps_its_diagonal() -> None:
    rows = torch.randn(400, 60, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 61) ** -1.0
    sketch = SketchedMoment(60, vectors=24, columns=16)
    for part in rows.split(150):
        sketch.add(part)
    metric, whole = sketch.metric(10), rows.double().T @ rows.double() / 10
    assert metric.factor is not None
    assert metric.factor.shape == (60, 16)
    torch.testing.assert_close(metric.diagonal(), whole.diagonal(), rtol=1e-4, atol=1e-4)
    missed = whole - metric.factor.double() @ metric.factor.double().T
    values = torch.linalg.eigvalsh(whole).flip(0)
    assert float(torch.linalg.eigvalsh(missed).min()) > -1e-4 * float(values[0])
    bound = min((1 + k / (24 - k - 1)) * float(values[k:].sum()) for k in range(23)) + float(values[16:].sum())
    assert float(missed.trace()) < bound


def test_a_layer_without_influence_is_named_and_has_a_metric_of_zero() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.times_zero = nn.Linear(6, 3), nn.Linear(6, 2), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.used(x) + 0 * self.times_zero(x), self.unused(x)

    with pytest.warns(UserWarning, match="does not depend on these layers.*: unused, times_zero;") as warned:
        layers = bs.capture(Unused(), inputs(2, 8, 6, dtype=torch.float32), output=True)
    assert len(warned) == 1
    assert [layer.metric_sensitivity == 0 for layer in layers] == [False, True, True]


class Tokens(nn.Module):
    """An embedding, a layer whose rows mix over real tokens, and another; the batch is a dict with a mask."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.first, self.second = nn.Embedding(20, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        x = self.first(self.embed(input_ids))
        real = attention_mask[..., None].to(x.dtype)
        return (self.second(torch.tanh(x) + (x * real).sum(1, keepdim=True)),)


def test_padding_is_left_out() -> None:
    """Its tokens may be any; asked for by a key or a function, it is left out without an output too."""
    real = torch.arange(7) < torch.tensor([3, 7, 5, 2])[:, None]
    ids = torch.randint(20, (4, 7), generator=torch.Generator().manual_seed(0))
    first, second = (
        bs.capture(Tokens(), [{"input_ids": i, "attention_mask": real}], output=True)
        for i in (ids, torch.where(real, ids, 19))
    )
    for layer, other in zip(first, second, strict=True):
        assert (len(layer.inputs), len(layer.held_out)) == (3 + 7 + 5, 2)
        assert layer.batch == 28
        assert torch.equal(layer.inputs, other.inputs)
        assert torch.equal(G(layer), G(other))
    batch = {"input_ids": ids, "attention_mask": real.long()}
    for mask, rows in (("attention_mask", 15), (lambda b: b["attention_mask"], 15), (False, 21), (None, 21)):
        assert len(bs.capture(Tokens(), [batch], mask=mask)["first"].inputs) == rows
    assert len(bs.capture(Tokens(), [batch], output=lambda m, b: m(**b)[0], mask=False)["first"].inputs) == 21


@pytest.mark.slow
def test_a_padded_bert_has_the_moments_and_metrics_of_an_unpadded_one() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    torch.manual_seed(0)
    model = transformers.BertModel(config, add_pooling_layer=False).double()
    ids = torch.randint(5, 50, (8, 6), generator=torch.Generator().manual_seed(0))
    padded = torch.cat([ids, torch.zeros(8, 3, dtype=torch.long)], 1)

    def pooled(model: nn.Module, batch: Any) -> Tensor:
        real = batch["attention_mask"][..., None]
        mean: Tensor = (model(**batch).last_hidden_state * real).sum(1) / real.sum(1)
        return mean

    plain, longer = (
        bs.capture(model, [{"input_ids": x, "attention_mask": (x > 0).long()}], "re:encoder.*", 20, output=pooled)
        for x in (ids, padded)
    )
    for layer, other in zip(plain, longer, strict=True):
        torch.testing.assert_close(layer.second_moment, other.second_moment, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(G(layer), G(other), rtol=1e-4, atol=1e-9)
    default = bs.capture(model, [{"input_ids": padded, "attention_mask": (padded > 0).long()}], output=True)
    assert all(layer.metric_sensitivity and layer.metric_sensitivity > 0 for layer in default)


def test_a_model_on_a_gpu_has_the_metrics_of_one_on_the_cpu(fake_cuda: FakeCuda) -> None:
    batches = inputs(3, 8, 5, 6, dtype=torch.float32)
    expected = bs.capture(linears(6, 8, 3, dtype=torch.float32), batches, output=True)
    model = linears(6, 8, 3, dtype=torch.float32).to("cuda")
    found = bs.capture(model, [batch.to("cuda") for batch in batches], output=True)
    for layer, other in zip(found, expected, strict=True):
        torch.testing.assert_close(G(layer), G(other), rtol=1e-2, atol=1e-2)  # gradients may be rounded to 8 bits


def frozen_part(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = model[0](x)
    y: Tensor = model[1](x)
    return y


class WithoutBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError("fused_kernel has no backward")


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"output": "logits"}, "output is 'logits', but a callable or True is needed"),
        ({"output": lambda m, b: None}, r"returns nothing \(None\), but a tensor is needed.*give output= a callable"),
        ({"output": lambda m, b: [m(b)]}, "returns a list, but a tensor is needed"),
        ({"output": lambda m, b: m(b).argmax(-1)}, "a torch.int64 tensor, which has no gradient, as of argmax; return"),
        ({"output": lambda m, b: m(b).detach()}, "no gradient on batch 1: it is detached"),
        ({"output": lambda m, b: b * 2}, "depends on no captured layer"),
        ({"output": lambda m, b: m(b) * float("nan")}, "output is NaN or infinite on batch 1"),
        (
            {"output": lambda m, b: WithoutBackward.apply(m(b))},
            "forbids a backward pass: fused_kernel has no backward;",
        ),
        ({"output": frozen_part}, r"run under torch.no_grad\(\).*: 0; use checkpoint"),
        ({"output": True, "probes": 0}, "probes is 0"),
        ({"probes": 2}, "name the output: output=True or a callable"),
        ({"output": True, "likelihood": "softmx"}, "there is no likelihood 'softmx'; did you mean 'softmax'"),
        ({"output": lambda m, b: m(b).sum(), "likelihood": "softmax"}, "needs at least 2 logits"),
        ({"mask": "attention_mask"}, "a batch has no 'attention_mask' to tell padding from tokens: it is a Tensor"),
        ({"mask": lambda b: b}, r"the mask is a tensor of shape \(8, 5, 6\), but a tensor \[examples, length\]"),
        ({"mask": 3}, "mask is 3, but a key of the batches"),
        ({"output": True, "batches": inputs(1, 1, 6)}, "saw too few examples to hold any out; give at least 2"),
    ],
)
def test_bad_outputs_are_refused_with_a_sentence(keywords: dict[str, Any], sentence: str) -> None:
    with pytest.raises(bs.BadInput, match=sentence):
        bs.capture(linears(6, 8, 3), **{"batches": inputs(2, 8, 5, 6), **keywords})


def test_tensors_of_inference_mode_are_refused_with_a_sentence() -> None:
    with torch.inference_mode():
        model, x = linears(6, 8, 3), torch.randn(8, 6, dtype=torch.float64)
    with pytest.raises(bs.BadInput, match=r"'0.weight' was made under torch.inference_mode.*load the model outside"):
        bs.capture(model, [x], output=True)
    scaled: Callable[[nn.Module, Tensor], Tensor] = lambda m, b: m(b) * b[:, :3]  # noqa: E731
    with pytest.raises(bs.BadInput, match=r"forbids a backward pass: Inference tensors cannot be saved for backward"):
        bs.capture(linears(6, 8, 3), [x], output=scaled)
