"""2:4-sparse layers: the stored layout, which weights are kept, what compensation gains, plant and recover."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conformance import layer

from basis_search.families import dense, sparse24
from basis_search.families.protocol import Params
from basis_search.families.sparse24.layout import compress, expand, largest_two, pad
from basis_search.layers.layer import Layer, LayerShape

pytestmark = pytest.mark.fast


def weight_of(params: Params, columns: int) -> torch.Tensor:
    return expand(params["values"], params["index"])[:, :columns]


def error(of: Layer, params: Params, spec: sparse24.Spec) -> float:
    exact = of.held_out.double() @ of.weight.double().T + (0 if of.bias is None else of.bias.double())
    y = sparse24.KERNELS[0].run(spec, params, of.held_out.double())
    return float((y - exact).square().sum() / exact.square().sum())


def test_compressed_weights_expand_to_themselves() -> None:
    weight = torch.randn(6, 24, generator=torch.Generator().manual_seed(0))
    positions = largest_two(weight.abs().view(6, 6, 4))
    masked = torch.zeros(6, 6, 4).scatter(2, positions, weight.view(6, 6, 4).gather(2, positions)).view(6, 24)
    values, index = compress(weight, positions)
    assert (values.shape, index.shape, index.dtype) == ((6, 12), (6, 3), torch.uint8)
    assert torch.equal(expand(values, index), masked)
    first = positions[0, :2]  # the first byte: two groups, two bits for each position
    assert int(index[0, 0]) == int(first[0, 0] | first[0, 1] << 2 | first[1, 0] << 4 | first[1, 1] << 6)


@pytest.mark.parametrize("compensate", [False, True])
@pytest.mark.parametrize("shape", [(64, 48), (37, 29)])
def test_a_layer_that_is_sparse_is_recovered_exactly(shape: tuple[int, int], compensate: bool) -> None:
    of = layer(shape)
    kept = torch.zeros(shape[1], -(-shape[0] // 4), 4, dtype=torch.bool)
    draw = torch.Generator().manual_seed(1)
    kept.scatter_(2, torch.rand(kept.shape, generator=draw).argsort(-1)[..., :2], True)
    weight = of.weight * kept.view(shape[1], -1)[:, : shape[0]]
    params = sparse24.fit(sparse24.Spec(compensate), dataclasses.replace(of, weight=weight))
    assert torch.equal(weight_of(params, shape[0]), weight)
    torch.testing.assert_close(params["bias"], of.bias)


def test_without_compensation_the_largest_contributions_are_kept_unchanged() -> None:
    of = layer((64, 48))
    weight = weight_of(sparse24.fit(sparse24.Spec(False), of), 64)
    assert torch.equal(weight, of.weight * (weight != 0))
    terms = (of.weight.double().square() * of.second_moment.diagonal()).view(48, 16, 4)
    kept = (weight != 0).view(48, 16, 4)
    assert bool((kept.sum(-1) == 2).all())
    inf = float("inf")
    assert bool((terms.where(kept, inf).amin(-1) >= terms.where(~kept, -inf).amax(-1)).all())


def test_compensation_lessens_the_error_on_correlated_inputs() -> None:
    of = layer((64, 48))
    errors = {c: error(of, sparse24.fit(sparse24.Spec(c), of), sparse24.Spec(c)) for c in (False, True)}
    assert errors[True] < 0.7 * errors[False]


def test_weights_after_the_dropped_ones_solve_least_squares() -> None:
    of = layer((64, 48))
    weight = of.weight[:, :4].sign() * torch.tensor([0.1, 0.1, 1.0, 2.0])  # so that the first two are dropped
    small = Layer("small", weight, None, of.inputs[:, :4], of.held_out[:, :4], batch=8)
    found = weight_of(sparse24.fit(sparse24.Spec(True), small), 4)
    assert bool((found[:, :2] == 0).all())
    exact = small.inputs @ weight.T
    least = exact - small.inputs[:, 2:] @ torch.linalg.lstsq(small.inputs[:, 2:], exact).solution
    left, plain = exact - small.inputs @ found.T, exact - small.inputs[:, 2:] @ weight[:, 2:].T
    assert float(left.square().sum()) < 1.01 * float(least.square().sum()) < 0.95 * float(plain.square().sum())


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    of = layer((64, 48))
    inputs = of.inputs.clone()
    inputs[:, 8:40] = 0
    params = sparse24.fit(sparse24.Spec(True), dataclasses.replace(of, inputs=inputs))
    assert bool(params["values"].isfinite().all())


def test_flops_halve_and_bytes_of_the_weight_are_nine_sixteenths() -> None:
    shape = LayerShape(512, 256, 64, dtype=torch.bfloat16)
    cost, full = sparse24.cost(sparse24.Spec(), shape), dense.cost(dense.Spec(), shape)
    assert 2 * cost.flops == full.flops
    weight = 2 * 512 * 256
    assert full.bytes - cost.bytes == weight * 7 // 16


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (LayerShape(64, 64, dtype=torch.bfloat16), "the layer is on cpu, and torch.sparse"),
        (
            LayerShape(96, 64, dtype=torch.bfloat16, device=torch.device("cuda")),
            "multiples of 64, but the layer has 64",
        ),
    ],
)
def test_refusals_name_the_limit(shape: LayerShape, reason: str) -> None:
    assert reason in (sparse24.KERNELS[-1].refuses(sparse24.Spec(), shape) or "")


def test_padding_adds_columns_of_zeros() -> None:
    assert pad(torch.ones(2, 9)).sum(1).tolist() == [9, 9]
    assert pad(torch.ones(2, 9)).shape == (2, 16)
