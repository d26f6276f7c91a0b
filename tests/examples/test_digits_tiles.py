"""Tiled layers of the digits example: initial values, learning rates and the cost of a model."""

import sys
from pathlib import Path

import pytest
import torch

from basis_search.families import stl

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "digits"))
import finetune_tiles
import tiles
import train_tiles
from model import DigitsTransformer

import basis_search as bs

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("start", tiles.START_NAMES)
def test_a_layer_starts_with_the_variance_of_the_dense_one(start):
    torch.manual_seed(0)
    linear = torch.nn.Linear(128, 96)
    layer = tiles.started(linear, start, 24, seed=1)
    x = torch.randn(2048, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, dense = layer(x) - linear.bias, linear(x) - linear.bias
    assert float(ours.square().mean()) == pytest.approx(float(dense.square().mean()), rel=0.05)


def test_only_the_catalogues_starts_resemble_the_layer_they_start_from():
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 64)
    x = torch.randn(1024, 64, generator=torch.Generator().manual_seed(0))
    correlation = {}
    for start in ("random", "catalogue", "ternary"):
        with torch.no_grad():
            ours, dense = (m(x) - linear.bias for m in (tiles.started(linear, start, 32, seed=1), linear))
        correlation[start] = float((ours * dense).sum() / (ours.norm() * dense.norm()))
    assert correlation["catalogue"] > 0.8
    assert correlation["ternary"] > 0.75
    assert abs(correlation["random"]) < 0.6


def model_of(start):
    return tiles.replaced(
        DigitsTransformer(), lambda _, linear: tiles.started(linear, start, 16, 0), tiles.BLOCK_LAYERS
    )


@pytest.mark.parametrize(("start", "bases"), [("catalogue", 2 * len(tiles.BLOCK_LAYERS)), ("ternary", 0)])
def test_each_parameter_has_one_rate_and_ternary_bases_stay(start, bases):
    model = model_of(start)
    groups = tiles.groups(model, tiles.Rates())
    members = [id(p) for group in groups for p in group["params"]]
    assert len(members) == len(set(members))
    assert {id(p) for p in model.parameters()} == set(members)
    undecayed = [group for group in groups if group.get("weight_decay") == 0]
    assert sum(group["lr"] > 0 for group in undecayed) == bases
    assert all(p.requires_grad == (group["lr"] > 0) for group in groups for p in group["params"])


def test_bases_stay_where_their_rate_is_zero():
    model = model_of("catalogue")
    tiles.groups(model, tiles.Rates(bases=0.0))
    layer = dict(model.get_submodule("blocks.0.qkv").operator.named_parameters())
    assert not layer["encode"].requires_grad
    assert layer["weight"].requires_grad


def test_a_step_moves_the_outputs_alike_whatever_the_scale_of_the_bases():
    """Weights move by their rates with signs at random, as AdamW's first step does; then the outputs' change counts."""
    x = torch.randn(512, 128, generator=torch.Generator().manual_seed(0))
    moved = {}
    for start in ("random", "catalogue", "ternary"):
        model = model_of(start)
        layer = model.get_submodule("blocks.0.qkv")
        weight = dict(layer.operator.named_parameters())["weight"]
        rate = next(g["lr"] for g in tiles.groups(model, tiles.Rates()) if g["params"][0] is weight)
        signs = torch.randint(0, 2, weight.shape, generator=torch.Generator().manual_seed(1)) * 2.0 - 1
        with torch.no_grad():
            before = layer(x)
            weight += rate * signs
            moved[start] = float((layer(x) - before).norm())
    assert max(moved.values()) < 1.4 * min(moved.values()), moved


def test_flops_count_encode_and_decode():
    plain = DigitsTransformer()
    assert tiles.flops(plain) == 1
    real, cheap = (
        tiles.flops(tiles.replaced(plain, lambda _, linear, s=s: tiles.started(linear, s, 24, 0), tiles.BLOCK_LAYERS))
        for s in ("catalogue", "ternary")
    )
    assert 24 / 64 < cheap < 0.4 < 0.6 < real


@pytest.mark.parametrize("kind", finetune_tiles.KINDS)
@pytest.mark.parametrize("budget", [0.5, 0.4])
def test_specs_keep_to_the_budget(kind, budget):
    shape = bs.LayerShape(128, 384, 512)
    found = finetune_tiles.specs(kind, shape, budget)
    assert found
    module = bs.families.lowrank if kind == "low rank" else stl
    whole = bs.families.dense.cost(bs.families.dense.Spec(), shape).flops
    for spec in found:
        assert 0.8 * budget < module.cost(spec, shape).flops / whole <= budget


def test_a_table_goes_on_where_it_was(tmp_path):
    calls = []

    def run():
        calls.append(1)
        return {"accuracy": 0.5, "flops": 1.0}

    for _ in range(2):
        table = train_tiles.Table(tmp_path / "rows.json")
        table.add({"recipe": "scratch", "seed": 0}, run)
    table.add({"recipe": "scratch", "seed": 1}, run)
    assert len(calls) == 2
    assert [row["seed"] for row in table.rows] == [0, 1]
