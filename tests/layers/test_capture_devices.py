"""capture() of models on CUDA devices, pretended ones: where sums are kept, what is copied, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fake_cuda_devices import FakeCuda
from fake_cuda_tensor import FakeCudaTensor
from torch import Tensor, nn

import basis_search as bs
from basis_search.layers.layer import TENSORS


class Attention(nn.Module):
    """Three layers of one input, then two of another; 16-bit where asked."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.value, self.output = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query(x), self.key(x), self.value(x)
        y: Tensor = self.output(torch.softmax(q @ k.transpose(1, 2), -1) @ v)
        return y


def some_batches(count: int = 24) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 5, 6, generator=generator) for _ in range(count)]


def loss(model: nn.Module, x: Tensor) -> Tensor:
    value: Tensor = (model(x) - x).square().mean()
    return value


def test_a_capture_on_a_gpu_is_that_on_the_cpu(fake_cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples are equal, sums to rounding; of the inputs only rows that are kept are copied, a few times."""
    expected = bs.capture(Attention(), some_batches(), samples=64, loss=loss, sensitivity="gradient")
    model, batches = Attention().to("cuda"), [batch.to("cuda") for batch in some_batches()]
    copied: list[Tensor] = []
    copy = FakeCudaTensor.cpu
    monkeypatch.setattr(FakeCudaTensor, "cpu", lambda x: copied.append(x) or copy(x))
    fake_cuda.waits.clear()
    found = bs.capture(model, batches, samples=64)
    assert len(fake_cuda.waits) < 24 * 4 / 2  # batches x layers: most calls copy nothing
    seen, kept = 24 * 8 * 5 * 4, sum(len(x) for x in copied)  # rows
    assert 4 * (64 + 16) <= kept < seen / 3
    for layer, other in zip(found, expected, strict=True):
        assert layer.device == torch.device("cuda:0")
        assert all(getattr(layer, name) is None or getattr(layer, name).device.type == "cpu" for name in TENSORS)
        assert torch.equal(layer.inputs, other.inputs)
        assert torch.equal(layer.held_out, other.held_out)
        torch.testing.assert_close(layer.moment, other.moment, rtol=1e-6, atol=1e-7)
    assert found["query"].moment is found["value"].moment
    with_loss = bs.capture(model, batches, samples=64, loss=loss, sensitivity="gradient")
    for layer, other in zip(with_loss, expected, strict=True):
        torch.testing.assert_close(layer.gradient_moment, other.gradient_moment, rtol=1e-5, atol=1e-12)
        assert layer.sensitivity == pytest.approx(other.sensitivity, rel=1e-5)


def test_a_model_spread_over_two_devices_keeps_both(fake_cuda: FakeCuda) -> None:
    class Spread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6).to("cuda:0"), nn.Linear(6, 6).to("cuda:1").bfloat16()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.second(self.first(x).to("cuda:1", torch.bfloat16))
            return y

    layers = bs.capture(Spread(), [batch.to("cuda:0") for batch in some_batches(4)], samples=20)
    assert [(str(layer.device), layer.dtype) for layer in layers] == [
        ("cuda:0", torch.float32),
        ("cuda:1", torch.bfloat16),
    ]
    placed = layers["second"].on_device()
    assert all(getattr(placed, name) is None or getattr(placed, name).device == placed.device for name in TENSORS)
    assert placed is layers["second"].on_device()
    assert placed.content_hash == layers["second"].content_hash


def test_layers_of_a_gpu_are_saved_and_searched_elsewhere(fake_cuda: FakeCuda, tmp_path: Any) -> None:
    layers = bs.capture(Attention().to("cuda"), [batch.to("cuda") for batch in some_batches(4)])
    bs.Layers(tuple(layer.on_device() for layer in layers)).save(tmp_path)
    loaded = bs.Layers.load(tmp_path)
    assert {layer.device.type for layer in loaded} == {"cpu"}
    assert [layer.content_hash for layer in loaded.to("cuda:1")] == [layer.content_hash for layer in layers]
    assert [layer.content_hash for layer in layers.to("cpu")] == [layer.content_hash for layer in loaded]
    with pytest.raises(bs.BadInput, match="no device 'cuda:2'; torch sees: cuda:0, cuda:1"):
        loaded.to("cuda:2")


def test_layers_without_values_are_refused() -> None:
    with torch.device("meta"):
        model = Attention()
    with pytest.raises(bs.BadInput, match="'query' is on the meta device, which holds no values; load"):
        bs.capture(model, some_batches(1))
    model.query._hf_hook = object()  # as accelerate marks it
    with pytest.raises(bs.BadInput, match=r"'query' is offloaded.*load the model without offloading"):
        bs.capture(model, some_batches(1))
    quantised = nn.Linear(6, 6)
    quantised.weight = nn.Parameter(torch.zeros(6, 6, dtype=torch.int8), requires_grad=False)
    with pytest.raises(bs.BadInput, match=r"weight of the layer '' is torch.int8.*unquantised"):
        bs.capture(quantised, some_batches(1))


def test_a_layer_of_a_gpu_that_is_not_there_is_refused_in_a_sentence() -> None:
    layer = bs.Layer(
        "fc", torch.ones(2, 3), None, torch.ones(4, 3), torch.ones(1, 3), batch=4, device=torch.device("cuda", 0)
    )
    with pytest.raises(bs.BadInput, match=r"the device is 'cuda:0', but torch .* sees no CUDA GPU here"):
        layer.on_device()
