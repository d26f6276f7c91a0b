"""capture(), and the directory of captured layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import basis_search as bs

pytestmark = pytest.mark.fast


def a_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 3, bias=False))


def some_batches(count: int = 4, examples: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(examples, 5, 6, generator=generator) for _ in range(count)]


def test_rows_are_the_inputs_of_the_layer_and_examples_are_not_split() -> None:
    batches = some_batches()
    layers = bs.capture(a_model(), batches)
    assert layers.names == ["0", "2"]
    first = layers["0"]
    assert first.batch == 8 * 5
    assert torch.equal(first.inputs, torch.cat([b[:6].reshape(-1, 6) for b in batches]))
    assert torch.equal(first.held_out, torch.cat([b[6:].reshape(-1, 6) for b in batches]))
    assert layers["2"].bias is None


def test_the_sample_is_bounded_and_its_moment_covers_every_row() -> None:
    batches = some_batches()
    layer = bs.capture(a_model(), batches, samples=40)["0"]
    seen = torch.cat([b[:6].reshape(-1, 6) for b in batches]).double()
    assert layer.inputs.shape == (40, 6)
    assert layer.held_out.shape == (10, 6)
    torch.testing.assert_close(layer.second_moment, seen.T @ seen / len(seen), rtol=1e-5, atol=1e-6)
    rows = {tuple(r) for r in seen.float().tolist()}
    assert all(tuple(r) in rows for r in layer.inputs.tolist())


def test_capture_leaves_the_model_unchanged() -> None:
    model = a_model().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    bs.capture(model, some_batches(), loss=lambda m, b: m(b).square().mean())
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_gradient_moment_and_sensitivity_of_a_loss_known_in_closed_form() -> None:
    """For loss = mean(y^2) over the last layer's output, noise of relative size e adds e times the loss itself."""
    model, batches = a_model(), some_batches(4, 200)
    layers = bs.capture(model, batches, loss=lambda m, b: m(b).square().mean())
    with torch.no_grad():
        outputs = [model(b).reshape(-1, 3) for b in batches]
    loss = sum(float(y.square().mean()) for y in outputs) / len(outputs)
    assert layers["2"].sensitivity == pytest.approx(loss, rel=0.1)
    gradients = torch.cat([2 * y / y.numel() for y in outputs]).double()
    torch.testing.assert_close(
        layers["2"].gradient_moment, (gradients.T @ gradients / len(gradients)).float(), rtol=1e-4, atol=1e-12
    )


def test_batches_may_be_tuples_dicts_or_a_generator() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 2)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            y: Tensor = self.linear(a + b)
            return y

    pairs = [(x, 2 * x) for x in some_batches()]
    as_tuples = bs.capture(Sum(), (p for p in pairs))["linear"]
    as_dicts = bs.capture(Sum(), [{"a": a, "b": b} for a, b in pairs])["linear"]
    assert torch.equal(as_tuples.inputs, as_dicts.inputs)


def test_single_examples_are_held_out_by_batch() -> None:
    layer = bs.capture(a_model(), [b[:1] for b in some_batches(8)])["0"]
    assert len(layer.inputs) == 6 * 5
    assert len(layer.held_out) == 2 * 5


def test_a_layer_that_is_called_twice_holds_the_same_example_out_in_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.linear(x) + self.linear(2 * x)
            return y

    batches = [torch.full((1, 3, 6), 4.0**index) for index in range(8)]  # no batch is twice another
    layer = bs.capture(Twice(), batches)["linear"]
    held_out = {float(value) for value in layer.held_out[:, 0]}
    assert held_out == {4.0, 8.0, 4.0**5, 2 * 4.0**5}
    assert not held_out & {float(value) for value in layer.inputs[:, 0]}


def test_two_single_examples_are_enough() -> None:
    layer = bs.capture(a_model(), [b[:1] for b in some_batches(2)])["0"]
    assert (len(layer.inputs), len(layer.held_out)) == (5, 5)


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    layers = bs.capture(a_model(), some_batches(), samples=40, loss=lambda m, b: m(b).square().mean())
    layers.save(tmp_path)
    loaded = bs.Layers.load(tmp_path)
    assert [a.content_hash for a in layers] == [b.content_hash for b in loaded]
    assert [a.sensitivity for a in layers] == [b.sensitivity for b in loaded]


def test_patterns_choose_layers() -> None:
    layers = bs.capture(a_model(), some_batches(), layers="re:[12]")
    assert layers.names == ["2"]
    assert bs.capture(a_model(), some_batches()).select(["0"]).names == ["0"]


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"layers": "re:blocks.*"}, "no nn.Linear matches 're:blocks.*'; the model has: 0, 2"),
        ({"layers": "re:("}, "is not a regular expression"),
        ({"samples": 0}, "samples is 0"),
        ({"batches": []}, "no batch was given"),
        ({"batches": [torch.full((8, 6), float("nan"))]}, "NaN or infinite"),
        ({"batches": [torch.zeros(1, 6)]}, "too few examples"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(keywords: dict[str, object], sentence: str) -> None:
    arguments: dict[str, object] = {"batches": some_batches(), **keywords}
    with pytest.raises(bs.BadInput) as refusal:
        bs.capture(a_model(), **arguments)  # type: ignore[arg-type]
    assert sentence in str(refusal.value)


def test_a_loss_that_is_nan_is_refused() -> None:
    with pytest.raises(bs.BadInput, match="loss is NaN or infinite"):
        bs.capture(a_model(), some_batches(), loss=lambda m, b: m(b).sum() * float("nan"))


def test_damaged_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(bs.BadInput, match=r"no layers\.json"):
        bs.Layers.load(tmp_path)
    bs.capture(a_model(), some_batches()).save(tmp_path)
    tensors = tmp_path / "0.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-4])
    with pytest.raises(bs.BadInput, match="cut or edited: its sha256"):
        bs.Layers.load(tmp_path)
    tensors.write_bytes(whole)
    index = json.loads((tmp_path / "layers.json").read_text())
    for change, sentence in (
        ({"schema_version": 99}, "schema version 99"),
        ({"format": "other"}, "not written by basis_search"),
        ({"layers": []}, "lists no layer"),
        ({"layers": [index["layers"][0] | {"file": "../x"}]}, "does not lie in"),
    ):
        (tmp_path / "layers.json").write_text(json.dumps(index | change))
        with pytest.raises(bs.BadInput, match=sentence):
            bs.Layers.load(tmp_path)
    (tmp_path / "layers.json").write_text('{"format": "basis_search.layers", "format": 1}')
    with pytest.raises(bs.BadInput, match="occurs twice"):
        bs.Layers.load(tmp_path)


def test_a_layer_that_matters_less_has_less_sensitivity() -> None:
    """One layer's output is multiplied by 1e-3 in the sum."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.strong, self.weak = nn.Linear(6, 4), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.strong(x) + 1e-3 * self.weak(x)
            return y

    batches = [(x, torch.zeros(8, 5, 4)) for x in some_batches()]
    torch.manual_seed(0)
    layers = bs.capture(Two(), batches, loss=lambda m, b: F.mse_loss(m(b[0]), b[1]))
    assert layers["strong"].sensitivity > 100 * layers["weak"].sensitivity
