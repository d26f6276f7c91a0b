"""Replacements go where the model is: exports of a GPU load without one and the reverse, on a test double of CUDA."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pretend_cuda import pretend_cuda
from torch import nn

import basis_search as bs

FAMILIES = ("dense", "lowrank", "int8")


def a_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(32, 16, generator=generator) for _ in range(4)]


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers captured on the CPU."""
    folder = tmp_path_factory.mktemp("layers")
    bs.capture(a_model(), batches()).save(folder)
    return folder


@pytest.fixture(scope="module")
def plan(captured: Path) -> bs.Plan:
    """Of a search of these layers on the GPU, in bfloat16."""
    record = bs.Record()
    with pretend_cuda():
        layers = bs.Layers.load(captured).to(dtype="bfloat16")
        fronts = [bs.search(one, FAMILIES, 2, record=record, device="cuda", sampler="random") for one in layers]
    assert all(e.failure is None for e in record)
    return bs.plan(fronts, {"flops": 0.9, "latency": float("inf")})


def outputs(model: nn.Module, device: str) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model(x.to(device, torch.bfloat16)).cpu() for x in batches()])


def test_a_plan_of_a_gpu_is_exported_and_loaded_on_either_machine(
    captured: Path, plan: bs.Plan, tmp_path: Path
) -> None:
    """By apply_ with the searched layers, with layers from a file, and by directories written on either machine."""
    with pretend_cuda():
        model = bs.apply_(a_model().to("cuda", torch.bfloat16), plan)
        assert {p.device.type for p in model.parameters()} == {"cuda"}
        expected = outputs(model, "cuda")
        bs.save_pretrained(model, tmp_path / "from_gpu")
    stored = type(plan).from_json(plan.to_json())
    found = [
        bs.apply_(a_model().bfloat16(), plan),
        bs.apply_(a_model().bfloat16(), stored, bs.Layers.load(captured)),
        bs.load_pretrained(a_model().bfloat16(), tmp_path / "from_gpu"),
    ]
    bs.save_plan(plan, tmp_path / "from_cpu")
    for replaced in found:
        torch.testing.assert_close(outputs(replaced, "cpu"), expected, rtol=2e-2, atol=2e-2)
    with pretend_cuda():
        model = bs.load_pretrained(a_model().to("cuda", torch.bfloat16), tmp_path / "from_cpu")
        torch.testing.assert_close(outputs(model, "cuda"), expected, rtol=2e-2, atol=2e-2)


def test_each_layer_of_a_model_that_is_spread_keeps_its_device(plan: bs.Plan, tmp_path: Path) -> None:
    bs.save_plan(plan, tmp_path)
    with pretend_cuda():
        for replace in (lambda m: bs.apply_(m, plan), lambda m: bs.load_pretrained(m, tmp_path)):
            model = a_model().bfloat16()
            model[0].to("cuda:0")
            model[2].to("cuda:1")
            replace(model)
            assert [str(model[i].device) for i in (0, 2)] == ["cuda:0", "cuda:1"]


def test_a_refit_and_a_distillation_stay_on_the_device(plan: bs.Plan) -> None:
    with pretend_cuda():
        dense, on_gpu = a_model().to("cuda", torch.bfloat16), [x.to("cuda", torch.bfloat16) for x in batches()]
        model = bs.refit(a_model().to("cuda", torch.bfloat16), plan, on_gpu)
        before = float((outputs(model, "cuda") - outputs(dense, "cuda")).float().norm())
        bs.distill(model, dense, on_gpu, learning_rate=1e-3)
        assert {p.device.type for p in model.parameters()} == {"cuda"}
        assert float((outputs(model, "cuda") - outputs(dense, "cuda")).float().norm()) <= before


def test_a_model_without_values_and_a_model_in_another_dtype(
    plan: bs.Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for call in (lambda m: bs.apply_(m, plan), lambda m: bs.load_pretrained(m, bs.save_plan(plan, tmp_path))):
        with pytest.raises(bs.BadInput, match="layer '0' is on the meta device, which holds no values"):
            call(a_model().to("meta"))
    capsys.readouterr()
    bs.apply_(a_model(), plan)
    said = capsys.readouterr().err
    assert "was searched in torch.bfloat16, but the model's runs in torch.float32: convert the model" in said


def test_codes_with_float32_scales_are_of_the_models_dtype(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(16, 32, bias=False)).to(torch.bfloat16)
    (layer,) = bs.capture(model, [x.to(torch.bfloat16) for x in batches()])
    plan = bs.plan({layer.name: bs.search(layer, ("int8",), trials=1)}, budget={"latency": 1e3})
    for replacement in (plan, bs.save_plan(plan, tmp_path)):
        replaced = bs.apply_(nn.Sequential(nn.Linear(16, 32, bias=False)).to(torch.bfloat16), replacement)[0]
        assert replaced.dtype == torch.bfloat16
        assert "convert the model" not in capsys.readouterr().err
        assert replaced.float().dtype == torch.float32
