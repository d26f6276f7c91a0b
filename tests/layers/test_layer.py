"""Layer: bad input, the split of samples, and the content hash."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from basis_search.errors import BadInput
from basis_search.layers.layer import (
    Layer,
    LayerLike,
    LayerShape,
)

pytestmark = pytest.mark.fast


def parts(**changes: Any) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(0)
    return {
        "name": "blocks.0.fc1",
        "weight": torch.randn(5, 3, generator=draw),
        "bias": torch.randn(5, generator=draw),
        "inputs": torch.randn(8, 3, generator=draw),
        "held_out": torch.randn(4, 3, generator=draw),
        "batch": 2,
    } | changes


def test_a_layer_has_the_shape_of_its_weight() -> None:
    layer = Layer(**parts())
    assert (layer.in_features, layer.out_features, layer.batch) == (3, 5, 2)
    assert layer.shape == LayerShape(3, 5, 2, torch.float32, torch.device("cpu"))
    for like in (layer, layer.shape):
        known: LayerLike = like
        assert known.dtype == torch.float32
    assert Layer(**parts(bias=None)).bias is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weight": torch.zeros(5)}, r"weight has shape \(5,\).*\[out, in\]"),
        ({"weight": torch.zeros(0, 3)}, r"weight has shape \(0, 3\).*>= 1"),
        ({"weight": torch.zeros(5, 0)}, r"weight has shape \(5, 0\)"),
        ({"bias": torch.zeros(4)}, r"bias has shape \(4,\).*5 rows.*\[5\] or None"),
        ({"bias": torch.zeros(5, 1)}, r"bias has shape \(5, 1\)"),
        ({"inputs": torch.zeros(8, 4)}, r"inputs has shape \(8, 4\).*\[samples, 3\]"),
        ({"inputs": torch.zeros(3)}, r"inputs has shape \(3,\)"),
        ({"held_out": torch.zeros(2, 2, 3)}, r"held_out has shape \(2, 2, 3\)"),
        ({"inputs": torch.zeros(0, 3)}, r"inputs is empty.*at least one row"),
        ({"held_out": torch.zeros(0, 3)}, r"held_out is empty"),
        ({"moment": torch.eye(5)}, r"moment has shape \(5, 5\).*\[3, 3\] is needed"),
        ({"gradient_moment": torch.eye(3)}, r"gradient_moment has shape \(3, 3\).*\[5, 5\] is needed"),
        ({"moment": torch.full((3, 3), math.nan)}, r"moment holds 9 NaN or infinite"),
        ({"gradient_moment": torch.full((5, 5), math.inf)}, r"gradient_moment holds 25 NaN or infinite"),
        ({"batch": 0}, r"batch is 0.*at least 1 row"),
        (
            {"weight": torch.tensor([[1.0, math.nan, math.inf]]).expand(5, 3)},
            r"weight holds 10 NaN or infinite.* of 15",
        ),
        ({"bias": torch.tensor([0.0, 0, 0, 0, math.inf])}, r"bias holds 1 NaN or infinite"),
        ({"inputs": torch.full((8, 3), -math.inf)}, r"inputs holds 24 NaN or infinite"),
        ({"held_out": torch.full((1, 3), math.nan)}, r"held_out holds 3 NaN.*drop those rows"),
    ],
)
def test_bad_input_is_one_sentence_that_names_the_layer_and_the_value(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said) as caught:
        Layer(**parts(**changes))
    assert "'blocks.0.fc1'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_from_linear_splits_the_rows_by_seed_and_loses_none() -> None:
    linear = torch.nn.Linear(3, 5)
    x = torch.arange(60.0).view(20, 3)
    layer = Layer.from_linear(linear, x, "fc")
    assert layer.batch == 20
    assert len(layer.held_out) == 5
    rows = torch.cat([layer.inputs, layer.held_out])
    assert torch.equal(rows[rows[:, 0].argsort()], x)
    assert torch.equal(layer.weight, linear.weight)
    assert not layer.weight.requires_grad
    same, other = Layer.from_linear(linear, x, "fc"), Layer.from_linear(linear, x, "fc", seed=1)
    assert torch.equal(same.held_out, layer.held_out)
    assert not torch.equal(other.held_out, layer.held_out)
    assert Layer.from_linear(linear, x, batch=7).batch == 7
    assert Layer.from_linear(torch.nn.Linear(3, 5, bias=False), x).bias is None
    assert Layer.from_linear(linear.bfloat16(), x).dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(40, 10), (2, 3), (6, 2, 5)])
def test_from_linear_holds_out_whole_examples(shape: tuple[int, ...]) -> None:
    """Each example repeats one row: a row in both samples comes from an example that was split."""
    x = torch.randn(shape[0], *(1 for _ in shape[1:]), 8).expand(*shape, 8)
    layer = Layer.from_linear(torch.nn.Linear(8, 5), x)
    per_example, held = math.prod(shape[1:]), max(1, shape[0] // 4)
    assert layer.batch == shape[0] * per_example
    assert layer.held_out.shape == (held * per_example, 8)
    assert layer.inputs.shape == ((shape[0] - held) * per_example, 8)
    fitted = {tuple(row) for row in layer.inputs.tolist()}
    held_out = {tuple(row) for row in layer.held_out.tolist()}
    assert len(held_out) == held
    assert len(fitted) == shape[0] - held
    assert not fitted & held_out


def test_the_split_of_rows_by_seed_is_fixed() -> None:
    x = torch.arange(8.0)[:, None]
    layer = Layer.from_linear(torch.nn.Linear(1, 5), x, seed=3)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    assert torch.equal(layer.held_out, x[order[:2]])
    assert torch.equal(layer.inputs, x[order[2:]])


def test_from_linear_holds_out_one_of_two_rows() -> None:
    layer = Layer.from_linear(torch.nn.Linear(3, 5), torch.randn(2, 3))
    assert (len(layer.inputs), len(layer.held_out)) == (1, 1)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (torch.zeros(4, 2), r"inputs have shape \(4, 2\).*must be 3"),
        (torch.zeros(()), r"inputs have shape \(\)"),
        (torch.zeros(3), "1 rows of inputs.*at least 2"),
        (torch.zeros(0, 3), "0 rows of inputs"),
        (torch.zeros(1, 4, 3), r"shape \(1, 4, 3\), which is one example.*flatten them to \[rows, in\]"),
        (torch.full((4, 3), math.nan), "NaN"),
    ],
)
def test_from_linear_refuses_bad_inputs(inputs: torch.Tensor, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        Layer.from_linear(torch.nn.Linear(3, 5), inputs)


def test_second_moment_is_over_the_fit_rows_alone_in_float64() -> None:
    layer = Layer(**parts())
    moment = layer.second_moment
    assert moment.dtype == torch.float64
    expected = sum(torch.outer(x, x) for x in layer.inputs.double()) / 8
    torch.testing.assert_close(moment, expected)
    other = dataclasses.replace(layer, held_out=layer.held_out + 1)
    assert torch.equal(other.second_moment, moment)
    known = dataclasses.replace(layer, moment=2 * torch.eye(3))  # over more rows than `inputs`
    assert torch.equal(known.second_moment, 2 * torch.eye(3, dtype=torch.float64))


def test_content_hash_covers_everything_that_an_evaluation_depends_on() -> None:
    first = Layer(**parts()).content_hash
    assert Layer(**parts()).content_hash == first
    assert len(first) == 64
    nudged = parts()["weight"].clone()
    nudged[0, 0] = torch.nextafter(nudged[0, 0], torch.tensor(9.0))
    others = [
        {"name": "blocks.0.fc2"},
        {"weight": nudged},
        {"weight": parts()["weight"].double()},
        {"bias": None},
        {"inputs": parts()["inputs"].flip(0)},
        {"held_out": parts()["held_out"] + 1},
        {"held_out": parts()["held_out"][:2]},
        {"batch": 3},
        {"moment": torch.eye(3)},
        {"dtype": torch.bfloat16},
        {"device": torch.device("meta")},
    ]
    hashes = [first, *(Layer(**parts(**change)).content_hash for change in others)]
    assert len(set(hashes)) == len(hashes)


def test_content_hash_ignores_the_layout_and_takes_bfloat16() -> None:
    x = parts()["inputs"]
    assert Layer(**parts(inputs=x.T.contiguous().T)).content_hash == Layer(**parts()).content_hash
    half: dict[str, Any] = {
        key: value.bfloat16() if isinstance(value, torch.Tensor) else value for key, value in parts().items()
    }
    assert Layer(**half).content_hash != Layer(**parts()).content_hash


def test_content_hash_tells_the_bias_from_the_rows_that_follow() -> None:
    """The same bytes divided otherwise are another layer."""
    numbers = torch.arange(1.0, 13.0)
    one = Layer(**parts(bias=None, inputs=numbers[:9].view(3, 3), held_out=numbers[9:].view(1, 3)))
    two = Layer(**parts(bias=None, inputs=numbers[:6].view(2, 3), held_out=numbers[6:].view(2, 3)))
    assert one.content_hash != two.content_hash


def test_to_changes_where_and_in_what_a_layer_runs_and_shares_its_tensors() -> None:
    layer = Layer(**parts())
    half = layer.to("cpu", "bfloat16")
    assert (half.dtype, half.weight.dtype) == (torch.bfloat16, torch.float32)
    assert half.weight is layer.weight
    assert half.content_hash != layer.content_hash
    assert half.to(dtype=torch.float32).content_hash == layer.content_hash
    assert layer.to() is layer.to("cpu:0") is layer.on_device() is layer


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"device": "meta"}, "meta device.*holds no values.*'cpu' or 'cuda'"),
        ({"device": "mps"}, "not on 'mps'"),
        ({"device": "gpu"}, "'gpu' is not a device"),
        ({"dtype": torch.int8}, "dtype 'int8'; known are: float64, float32"),
        ({"dtype": "bfloat"}, "did you mean 'bfloat16'"),
    ],
)
def test_to_refuses_what_a_layer_cannot_run_on_or_in(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        Layer(**parts()).to(**arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused() -> None:
    with pytest.raises(BadInput, match=r"the device is 'cuda', but torch .* sees no CUDA GPU here; use device='cpu'"):
        Layer(**parts()).to("cuda")
