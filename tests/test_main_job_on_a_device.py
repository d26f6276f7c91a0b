"""The main job where the layers run: capture, search, plan, replace, save and load, on a device pretended or real."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from conformance import DEVICES
from torch import nn

import basis_search as bs
from basis_search.evaluation import evaluate

DEVICE_PLACES = pytest.mark.parametrize("where", ["double", pytest.param("gpu", marks=pytest.mark.gpu)], indirect=True)
FAMILIES = ("dense", "int8", "lowrank", "stl", "kronecker", "pq")
SPACES = {"stl": bs.stl.Space(tiles=(4,), ternary=(), waists=(0.0,))}  # of few specs to rank


def a_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))


def batches(where: str) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    mix = torch.randn(32, 32, generator=draw) * torch.linspace(1, 0.05, 32)
    return [(torch.randn(96, 32, generator=draw) @ mix / 6).to(DEVICES[where]) for _ in range(4)]


@DEVICE_PLACES
def test_capture_search_plan_replace_save_load(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "MAX_ATTEMPTS", 1)  # on a busy machine
    device = DEVICES[where]
    model, data = a_model().to("cuda"), batches(where)
    layers = bs.capture(model, data, loss=lambda m, batch: (m(batch) - batch).square().mean())
    assert {layer.device for layer in layers} == {device}
    fronts = {layer.name: bs.search(layer, FAMILIES, trials=1, spaces=SPACES) for layer in layers}
    for front in fronts.values():
        assert front.evaluations
        for evaluation in front.evaluations:
            assert evaluation.latency > 0
            assert evaluation.latency_graph is not None, evaluation.kernel
    dense, x = copy.deepcopy(model), data[0]
    plan = bs.plan(fronts, {"flops": 0.9, "latency": float("inf")})
    bs.apply_(model, plan)
    bs.save_pretrained(model, tmp_path / "smaller")
    assert {t.device for t in model.state_dict().values()} == {device}
    with torch.no_grad():
        y = model(x)
        again = a_model().to("cuda")
        bs.load_pretrained(again, tmp_path / "smaller")
        assert torch.equal(again(x), y)
        on_cpu = bs.load_pretrained(a_model(), tmp_path / "smaller")
        assert {t.device.type for t in on_cpu.state_dict().values()} == {"cpu"}
        torch.testing.assert_close(on_cpu(x.cpu()), y.cpu(), rtol=0.05, atol=0.05)
        assert float((y - dense(x)).square().mean() / dense(x).square().mean()) < 1


@DEVICE_PLACES
def test_layers_captured_on_the_cpu_are_searched_on_the_device_and_back(where: str, tmp_path: Path) -> None:
    layers = bs.capture(a_model(), batches("cpu") if where == "gpu" else [b.cpu() for b in batches(where)])
    layers.save(tmp_path)
    loaded = bs.Layers.load(tmp_path)
    (first, _) = loaded.to("cuda", "bfloat16")
    front = bs.search(first, ("dense", "lowrank"), trials=2)
    assert all(e.device.name == torch.cuda.get_device_name() for e in front.evaluations)
    (first, _) = bs.capture(a_model().to("cuda"), batches(where))
    assert bs.search(first, ("lowrank",), trials=1, device="cpu").evaluations[0].device.instructions[:3] != "sm_"
