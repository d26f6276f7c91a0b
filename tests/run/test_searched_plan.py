"""A plan of a run folder is applied with the parameters that its search fitted; lost ones are fitted again."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import basis_search as bs
from basis_search import cli
from basis_search.evaluation.evaluate import evaluate
from basis_search.families import FAMILIES
from basis_search.run.finish import read_plans

FAMILIES_SEARCHED = ("dense", "lowrank", "stl", "kronecker", "pq")
ROOT = Path(__file__).resolve().parents[2]
NAME = "flops-0.80"
ANY = {"flops": 9.0, "latency": float("inf")}


def a_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16)).eval()


def an_input(seed: int = 0) -> torch.Tensor:
    return torch.randn(256, 16, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with captured layers and a finished run over them."""
    home = tmp_path_factory.mktemp("searched")
    bs.capture(a_model(), [an_input(1), an_input(2)]).save(home / "layers")
    status = cli.main([
        "search", f"layers={home / 'layers'}", f"run={home / 'run'}", f"families=[{','.join(FAMILIES_SEARCHED)}]",
        "trials=3", "sampler=random", "budgets={flops: [0.8]}", "max_latency=inf", "report=false",
    ])  # fmt: skip
    assert status == 0
    return home


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the layers that are fitted in this process, in order."""
    called: list[str] = []
    for family in FAMILIES.values():
        plain = family.fit
        monkeypatch.setattr(family, "fit", lambda s, layer, f=plain: called.append(layer.name) or f(s, layer))
    return called


def export(run: Path, out: Path, *options: str) -> int:
    return cli.main(["export", str(run), "--flops", "0.8", "--out", str(out), *options])


def outputs(directory: Path) -> torch.Tensor:
    with torch.no_grad():
        y: torch.Tensor = bs.load_pretrained(a_model(), directory)(an_input())
    return y


def test_export_of_a_finished_run_fits_nothing(searched: Path, fits: list[str], tmp_path: Path) -> None:
    assert export(searched / "run", tmp_path / "out") == 0
    assert fits == []
    layers = bs.Layers.load(searched / "layers")
    plan = read_plans(searched / "run", layers)[0]
    assert plan.name == NAME
    with torch.no_grad():
        applied = bs.apply_(copy.deepcopy(a_model()), plan)(an_input())
    assert fits == []
    fitted = a_model()
    for name, e in plan.choices.items():
        fitted[int(name)] = bs.fit(layers[name], e.candidate.family, e.candidate.spec)
    assert sorted(fits) == ["0", "2"]
    with torch.no_grad():
        expected = fitted(an_input())
    for found in (applied, outputs(tmp_path / "out"), outputs(searched / "run" / "export" / NAME)):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_run_folder_is_refused_with_its_exports_named(searched: Path) -> None:
    with pytest.raises(bs.BadInput, match=f"exported plans are in .*run/export/{NAME} and next to it"):
        bs.apply_(a_model(), searched / "run")


def test_apply_fits_nothing_in_the_readmes_ten_lines(
    fits: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (lines,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    before, call, after = lines.partition("bs.apply_(model, plan)")
    assert call
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(before, "README.md", "exec"), names)
    assert fits, "the search fits in this process"
    fits.clear()
    exec(compile(call + after, "README.md", "exec"), names)
    assert fits == []
    assert "fitted again" not in capsys.readouterr().err
    assert (tmp_path / "smaller").is_dir()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("stored", [False, True])
def test_apply_fits_nothing_after_search_model(workers: int, stored: bool, fits: list[str], tmp_path: Path) -> None:
    layers = bs.capture(a_model(), [an_input(1), an_input(2)])
    record = bs.Record(tmp_path / "evaluations.jsonl") if stored else None
    fronts = bs.search_model(layers, ("lowrank", "kronecker"), 2, workers=workers, record=record)
    plan = bs.plan(fronts, ANY)
    applied = bs.apply_(a_model(), plan)
    assert fits == []
    for name, e in plan.choices.items():
        fitted = bs.fit(layers[name], e.candidate.family, e.candidate.spec)
        x = layers[name].held_out
        torch.testing.assert_close(applied.get_submodule(name)(x), fitted(x), rtol=1e-4, atol=1e-5)


def test_a_resumed_search_finds_its_parameters_next_to_its_log(fits: list[str], tmp_path: Path) -> None:
    layers = bs.capture(a_model(), [an_input(1), an_input(2)])

    def search(layer: bs.Layer) -> bs.ParetoFront:
        return bs.search(layer, ("lowrank", "pq"), 2, record=bs.Record(tmp_path / "evaluations.jsonl"))

    for layer in layers:
        search(layer)
    fits.clear()
    fronts = {layer.name: search(layer) for layer in layers}
    bs.apply_(a_model(), bs.plan(fronts, ANY))
    assert fits == []
    stored = {path.stem for path in (tmp_path / "fitted").iterdir()}
    assert stored == {e.key for front in fronts.values() for e in front.evaluations}


def test_a_second_run_with_the_cache_fits_nothing(fits: list[str], tmp_path: Path) -> None:
    (layer, _) = bs.capture(a_model(), [an_input(1), an_input(2)])
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        record = bs.Record(tmp_path / run / "evaluations.jsonl", cache=tmp_path / "cache")
        front = bs.search(layer, ("lowrank", "pq"), 2, sampler="random", record=record)
        if run == "one":
            assert fits
            fits.clear()
            shutil.rmtree(tmp_path / "one")  # the cache has its own copy
    bs.save_plan(bs.plan([front], ANY), tmp_path / "plan")
    assert fits == []
    keys = {e.key for e in front.evaluations}
    assert {path.stem for path in (tmp_path / "two" / "fitted").iterdir()} == keys
    assert keys <= {path.stem for path in (tmp_path / "cache" / "fitted").iterdir()}


def test_an_evaluator_without_params_file_is_fitted_by_apply(fits: list[str]) -> None:
    layers = bs.capture(a_model(), [an_input(5), an_input(6)])  # no other test stores its parameters

    def judge(
        layer: bs.Layer, family: str, spec: Any, *, threads: int, twin: Any = None, most_error: float = float("inf")
    ) -> bs.Evaluation:
        return evaluate(layer, family, spec, threads=threads, twin=twin, most_error=most_error)

    fronts = {layer.name: bs.search(layer, ("lowrank",), 2, judge=judge) for layer in layers}
    fits.clear()
    bs.apply_(a_model(), bs.plan(fronts, ANY))
    assert fits == ["0", "2"]


def test_the_store_holds_the_fronts_alone(searched: Path) -> None:
    fronts = json.loads((searched / "run" / "front.json").read_text())["layers"]
    keys = {bs.Evaluation.from_json(e).key for front in fronts.values() for e in front}
    assert {path.name for path in (searched / "run" / "fitted").iterdir()} == {f"{key}.safetensors" for key in keys}


@pytest.mark.parametrize("damage", ["cut", "flipped", "swapped", "missing", "of another spec"])
def test_damaged_parameters_are_fitted_again(
    damage: str, searched: Path, fits: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from basis_search.evaluation import fitted_store

    run = tmp_path / "run"
    shutil.copytree(searched / "run", run)
    plan = read_plans(run, bs.Layers.load(searched / "layers"))[0]
    first, second = (run / "fitted" / f"{e.key}.safetensors" for e in plan.choices.values())
    whole = first.read_bytes()
    if damage == "cut":
        first.write_bytes(whole[:-8])
    elif damage == "flipped":
        first.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "swapped":
        shutil.copy(second, first)
    elif damage == "missing":
        first.unlink()
    else:
        fitted_store.write(first, first.stem, {"bias": torch.zeros(24), "weight": torch.zeros(2, 2)})
    assert export(run, tmp_path / "out") == 0
    assert fits == ["0"]
    said = capsys.readouterr()
    assert said.err.count("is fitted again") == 1
    assert "layer '0' is fitted again: " in said.err
    json.loads(said.out)
    torch.testing.assert_close(
        outputs(tmp_path / "out"), outputs(searched / "run" / "export" / NAME), rtol=1e-4, atol=1e-5
    )
