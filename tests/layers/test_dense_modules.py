"""Dense layers that are not nn.Linear: GPT-2's Conv1D, convolutions of size 1; shared modules and weights."""

from __future__ import annotations

import copy
import math
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import basis_search as bs
from basis_search.layers.dense_modules import dense


def transformers_conv1d() -> type[nn.Module]:
    return pytest.importorskip("transformers.pytorch_utils").Conv1D


def replaced(model: nn.Module, x: Tensor, family: str = "dense", spec: object = None) -> tuple[nn.Module, bs.Layers]:
    """A copy with every layer replaced by an exact spec."""
    layers = bs.capture(model, [x, x])
    fronts = {layer.name: bs.search(layer, (family,), trials=1) for layer in layers}
    return bs.apply_(copy.deepcopy(model), bs.plan(fronts, {"flops": 2.0, "latency": math.inf})), layers


CONVOLUTIONS = {
    "1d": (nn.Conv1d(6, 10, 1), (4, 6, 7)),
    "2d": (nn.Conv2d(6, 10, 1, bias=False), (4, 6, 5, 3)),
    "2d with stride": (nn.Conv2d(6, 10, 1, stride=(2, 3)), (4, 6, 7, 7)),
    "3d": (nn.Conv3d(6, 10, 1), (4, 6, 2, 3, 2)),
    "same": (nn.Conv2d(6, 10, 1, padding="same"), (4, 6, 3, 3)),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolutions_of_size_1_are_layers(case: str, tmp_path: Path) -> None:
    convolution, shape = CONVOLUTIONS[case]
    model = nn.Sequential(convolution).eval()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    new, layers = replaced(model, x)
    assert isinstance(new[0], bs.StructuredLinear)
    rows = convolution(x).numel() // 10
    assert (layers["0"].in_features, layers["0"].out_features, layers["0"].batch) == (6, 10, rows)
    with torch.no_grad():
        torch.testing.assert_close(new(x), model(x))
        torch.testing.assert_close(new(x[0]), model(x[0]))  # unbatched
        bs.save_pretrained(new, tmp_path)
        again = bs.load_pretrained(copy.deepcopy(model), tmp_path)
        assert torch.equal(again(x), new(x))
        compiled = torch.compile(new, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), model(x))


def test_other_convolutions_are_not_dense_layers() -> None:
    for other in (nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1, padding=1), nn.Conv2d(4, 4, 1, groups=2),
                  nn.ConvTranspose2d(4, 4, 1), nn.Embedding(4, 4), nn.LazyConv2d(4, 1)):  # fmt: skip
        assert dense(other) is None


def test_rows_of_a_convolution_are_its_positions() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 1, stride=2))
    x = torch.randn(8, 3, 4, 4)
    layer = bs.capture(model, [x], loss=lambda m, b: m(b).square().mean())["0"]
    positions = x[:6, :, ::2, ::2].permute(0, 2, 3, 1).reshape(-1, 3)  # a quarter of the examples is held out
    assert torch.equal(layer.inputs, positions)
    assert layer.gradient_moment is not None
    y = model(x).detach().permute(0, 2, 3, 1).reshape(-1, 5).double()
    expected = (2 / y.numel() * y).T @ (2 / y.numel() * y) / len(y)
    torch.testing.assert_close(layer.gradient_moment.double(), expected, rtol=1e-4, atol=1e-9)


def test_gpt2s_conv1d_is_a_transposed_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(transformers_conv1d()(10, 6)).eval()
    x = torch.randn(4, 3, 6)
    new, layers = replaced(model, x)
    assert torch.equal(layers["0"].weight, model[0].weight.T)
    with torch.no_grad():
        torch.testing.assert_close(new(x), model(x))


def test_a_class_of_the_same_name_elsewhere_is_not_a_dense_layer() -> None:
    elsewhere = types.new_class("Conv1D", (nn.Module,))
    assert dense(elsewhere()) is None
    assert "transformers" not in sys.modules or dense(transformers_conv1d()(4, 4)) is not None


class Shared(nn.Module):
    """One module under two names, a weight under two modules, and an embedding tied to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 12)
        self.first = nn.Linear(12, 12)
        self.again = self.first
        self.left, self.right = nn.Linear(12, 12, bias=False), nn.Linear(12, 12, bias=False)
        self.right.weight = self.left.weight
        self.head = nn.Linear(12, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.again(self.first(self.embed(ids)).relu())
        y: Tensor = self.head(self.left(x) + self.right(x[:, :2]).sum(1, keepdim=True))
        return y


def test_shared_layers_are_one_layer_with_several_calls(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, ids = Shared().eval(), torch.randint(20, (8, 4))
    with pytest.warns(UserWarning, match=r"'head' shares its weight with 'embed.weight'"):
        layers = bs.capture(model, [ids, ids], loss=lambda m, b: m(b).square().mean())
    assert [(layer.name, layer.aliases, layer.calls, layer.batch) for layer in layers] == [
        ("first", ("again",), 2, 32),
        ("left", ("right",), 2, 32),
    ]
    layers.save(tmp_path / "layers")
    assert [(layer.aliases, layer.calls) for layer in bs.Layers.load(tmp_path / "layers")] == [
        (("again",), 2),
        (("right",), 2),
    ]
    fronts = {layer.name: bs.search(layer, ("dense", "lowrank"), trials=2) for layer in layers}
    new = bs.apply_(copy.deepcopy(model), bs.plan(fronts, {"flops": 1.0}))
    assert new.first is new.again
    assert new.left is new.right
    assert isinstance(new.first, bs.StructuredLinear)
    bs.save_pretrained(new, tmp_path / "model")
    loaded = bs.load_pretrained(Shared().eval(), tmp_path / "model")
    assert loaded.first is loaded.again
    with torch.no_grad():
        assert torch.equal(loaded(ids), new(ids))
    assert bs.capture(model, [ids, ids], ["head"]).names == ["head"]
    assert bs.capture(model, [ids, ids], exclude=["re:(again|l.*|r.*)"], layers="re:[^h].*").names == ["first"]


def test_excluded_layers_stay() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    assert bs.capture(model, [torch.randn(8, 4)], exclude="re:[12]").names == ["0"]
    with pytest.raises(bs.BadInput, match=r"no nn.Linear matches"):
        bs.capture(model, [torch.randn(8, 4)], exclude="re:.*")


def test_sensitivity_from_gradients_is_the_rise_of_the_loss_to_second_order() -> None:
    """For half the squared error with unit residuals it is E y^2 / 2 at the output; the layers after it are linear."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 1, bias=False)).eval()
    xs = [torch.randn(2048, 8) for _ in range(4)]
    with torch.no_grad():
        batches = [(x, model(x) + torch.randn(2048, 1)) for x in xs]
        hidden, out = torch.cat([model[0](x) for x in xs]), torch.cat([model(x) for x in xs])

    def loss(m: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return 0.5 * (m(batch[0]) - batch[1]).square().mean()

    first, second = bs.capture(model, batches, loss=loss, sensitivity="gradient")
    assert second.sensitivity == pytest.approx(0.5 * float(out.square().mean()), rel=0.1)
    # Error spread evenly over the hidden features reaches the output through the squared weights.
    through = float(model[1].weight.square().sum()) * float(hidden.square().sum(1).mean()) / 8
    assert first.sensitivity == pytest.approx(0.5 * through, rel=0.1)
    with pytest.raises(bs.BadInput, match="did you mean 'gradient'"):
        bs.capture(model, batches, loss=loss, sensitivity="gradients")
    with pytest.raises(bs.BadInput, match="no gradient at any layer"):
        bs.capture(model, batches, loss=lambda m, b: 0 * m(b[0]).sum(), sensitivity="gradient")
