"""The Kronecker family: fits recover planted layers, cost agrees with counting, the space is cheaper than dense."""

from __future__ import annotations

import math

import optuna
import pytest
import torch

from basis_search.errors import BadInput
from basis_search.families import kronecker
from basis_search.families.kronecker import KroneckerChain, blocks
from basis_search.families.kronecker.space import padded
from basis_search.layers.layer import Layer, LayerShape

pytestmark = pytest.mark.fast
optuna.logging.set_verbosity(optuna.logging.WARNING)


def planted_layer(text: str, out: int, width: int, dtype: torch.dtype = torch.float64, bias: bool = True) -> Layer:
    chain = KroneckerChain.parse(text)
    draw = torch.Generator().manual_seed(0)
    factors = [torch.randn(p.storage, generator=draw, dtype=torch.float64) for p in chain]
    weight = blocks.dense(blocks.fuse_all(factors))[:out, :width]
    mixing = torch.randn(width, width, generator=draw).double()
    x = torch.randn(400, width, generator=draw, dtype=torch.float64) @ mixing
    x = x + 2
    shift = torch.randn(out, generator=draw, dtype=torch.float64) if bias else None
    return Layer("planted", weight, shift, x[:300], x[300:], 32, dtype)


def output_error(layer: Layer, spec: kronecker.Spec) -> float:
    params = kronecker.fit(spec, layer)
    reference = kronecker.KERNELS[0]
    y = layer.held_out @ layer.weight.T + (0 if layer.bias is None else layer.bias)
    difference = reference.run(spec, reference.pack(spec, params), layer.held_out) - y
    return float(difference.square().sum() / y.square().sum())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("text", "out", "width"),
    [
        ("(1,8,8,4)*(8,4,6,1)", 32, 48),
        ("(1,4,8,8)*(4,16,6,1)", 32, 24),
        ("(1,2,4,12)*(4,4,2,3)*(8,3,6,1)", 24, 48),
        ("(1,7,5,3)*(5,3,7,1)", 21, 35),
    ],
)
def test_a_planted_layer_is_recovered(text: str, out: int, width: int, bias: bool) -> None:
    layer = planted_layer(text, out, width, bias=bias)
    assert output_error(layer, kronecker.Spec(chain=text)) < 1e-10
    assert output_error(planted_layer(text, out, width, torch.float32, bias), kronecker.Spec(chain=text)) < 1e-10


def test_the_fit_uses_the_inputs_and_the_bias_absorbs_the_mean() -> None:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(600, 32, generator=draw) * torch.logspace(0, -2, 32)[torch.randperm(32, generator=draw)] + 1
    layer = Layer("l", torch.randn(24, 32, generator=draw), torch.zeros(24), x[:400], x[400:], 8)
    spec = kronecker.Spec(chain="(1,4,4,6)*(4,6,8,1)")
    plain = kronecker.factorize(layer.weight, spec.chain).to_dense()
    y = layer.held_out @ layer.weight.T
    unweighted = float((layer.held_out @ plain.T - y).square().sum() / y.square().sum())
    assert output_error(layer, spec) < 0.1 * unweighted


def test_params_are_canonical_and_in_the_layers_dtype() -> None:
    layer = planted_layer("(1,8,8,4)*(8,4,6,1)", 30, 45, torch.bfloat16)
    spec = kronecker.Spec(chain="(1,8,8,4)*(8,4,6,1)")
    params = kronecker.fit(spec, layer)
    assert set(params) == {"factor_0", "factor_1", "bias", "out_features"}
    assert params["factor_0"].shape == (1, 8, 8, 4)
    assert params["factor_1"].shape == (8, 4, 6, 1)
    assert {params[name].dtype for name in ("factor_0", "factor_1", "bias")} == {torch.bfloat16}
    assert int(params["out_features"]) == 30


def test_product_checks_of_the_storage_order() -> None:
    for storage, norm in (((4, 64, 64, 4), 8.600547762708), ((3, 5, 7, 2), 4.381779395088)):
        a, b, c, d = storage
        grid = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in storage), indexing="ij")
        w = torch.sin(1 + 0.7 * grid[0] + 1.3 * grid[1] + 2.1 * grid[2] + 3.7 * grid[3])
        columns = torch.arange(a * c * d, dtype=torch.float64)
        x = torch.cos(0.01 * columns)[:, None] * torch.tensor([1, -0.5, 0.25], dtype=torch.float64)
        spec = kronecker.Spec(chain=f"({a},{b},{c},{d})")
        for kernel in (kronecker.KERNELS[0], next(k for k in kronecker.KERNELS if k.name == "torch")):
            y = kernel.run(spec, kernel.pack(spec, {"factor_0": w}), x.T)
            assert math.isclose(float(y.norm()), norm, rel_tol=1e-11)
        if a == 3:
            assert math.isclose(float(y[0, 0]), 0.8558025344873, rel_tol=1e-11)


def test_cost_agrees_with_counting() -> None:
    spec = kronecker.Spec(chain="(1,4,6,5)*(2,3,4,5)")
    layer = LayerShape(38, 19, batch=3, dtype=torch.bfloat16)
    multiplications = 0
    for pattern in spec.parsed:
        multiplications += int(pattern.support().sum()) * 3
    cost = kronecker.cost(spec, layer)
    assert cost.multiplications == cost.additions == multiplications
    assert cost.parameters == multiplications // 3 + 19
    assert cost.bytes == 2 * (cost.parameters + 3 * 38 + 3 * 19)
    assert cost.lookups == 0


def test_a_chain_may_be_costly_but_not_smaller_than_the_layer() -> None:
    spec = kronecker.Spec(chain="(1,4,4,4)*(4,4,4,1)")
    for shape in (LayerShape(17, 16), LayerShape(16, 17)):
        with pytest.raises(BadInput, match="at least as large"):
            kronecker.cost(spec, shape)
        assert all(kernel.refuses(spec, shape) for kernel in kronecker.KERNELS)
    costly = kronecker.Spec(chain="(1,16,64,1)*(1,64,16,1)")
    assert kronecker.cost(costly, LayerShape(16, 16)).multiplications > 256
    # More parameters than the layer has: no unique solution, and the damping of the fit leaves a small error.
    assert output_error(planted_layer("(1,16,16,1)", 16, 16), costly) < 1e-10


@pytest.mark.parametrize(("out", "width"), [(128, 512), (512, 128), (10, 128), (197, 65), (97, 101), (16, 16)])
def test_the_space_contains_only_chains_cheaper_than_dense(out: int, width: int) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    layer = LayerShape(width, out)
    specs = {kronecker.suggest(study.ask(), layer, kronecker.Space()) for _ in range(30)}
    assert len(specs) > 5
    for spec in specs:
        assert kronecker.cost(spec, layer).multiplications <= 0.9 * out * width
        assert spec.parsed.redundant() is None
    assert any(len(spec.parsed) == 2 for spec in specs)


def test_a_layer_whose_only_chain_is_dense_is_refused() -> None:
    for out, width in ((2, 2), (1, 64), (3, 2)):
        with pytest.raises(BadInput, match="only chain is dense"):
            kronecker.suggest(optuna.create_study().ask(), LayerShape(width, out), kronecker.Space())


def test_padding_is_small_and_finds_divisors() -> None:
    assert padded(127, 0.13) == 128
    assert padded(197, 0.13) == 198  # 12 divisors, like 200; 208 has 10
    assert padded(3, 0.13) == 3
    assert all(n <= padded(n, 0.13) <= 1.13 * n for n in range(1, 600))
