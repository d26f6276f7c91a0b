"""Compatibility with version 0.1.0: its files load; signatures, settings and formats are as recorded by record.py."""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import basis_search as bs
from basis_search import cli

_found = importlib.util.spec_from_file_location("contract_record", Path(__file__).with_name("record.py"))
assert _found is not None
assert _found.loader is not None
record = importlib.util.module_from_spec(_found)
_found.loader.exec_module(record)

RECORDED: Path = record.RECORDED


def recorded(name: str) -> Any:
    return json.loads((RECORDED / f"{name}.json").read_text())


ADDED_FAMILIES = ("fp8", "sparse24", "weight_only")
IN_DEFAULTS = tuple(map(repr, ADDED_FAMILIES))
ADDED: dict[str, tuple[str, ...]] = {
    "refit": ("output=None",),
    "distill": ("output=None",),
    "Evaluation": (
        "latency_graph=None",
        "latency_graph_ratio=None",
        "latency_graph_spread=None",
        "kernels_graph=<factory>",
        "host_seconds=None",
        "timed='eager'",
        "uncaptured=<factory>",
        "weighted_error=None",
        "damage=None",
        "weighted_error",
        "damage",
        "searched_error",
        "latency_graph",
        "latency_graph_ratio",
        "latency_graph_spread",
        "kernels_graph",
        "host_seconds",
        "timed",
        "uncaptured",
        "timed_latency",
        "timed_ratio",
        "timed_spread",
        "timed_kernels",
        "host_share",
        "timed_by",
        "with_ratio",
    ),
    "Layer": ("on_device", "to", "output_metric=None", "output_metric", "metric_sensitivity", "tensors", "moved"),
    "Layers": ("to",),
    "Plan": ("table=None", "table"),
    "capture": ("output=None", "likelihood=None", "probes=1", "mask=None"),
    "validate": ("uniform=4",),
    "factorize": ("output_metric=None",),
    "search": ("device=None", "clock='auto'", *IN_DEFAULTS),
    "search_model": ("device=None", "clock='auto'", *IN_DEFAULTS),
}
"""What names have gained since: a class's members and fields, and parameters or parts of defaults in a signature."""


def without(described: Any, added: tuple[str, ...]) -> Any:
    """A description from record.py without what was added."""
    if isinstance(described, dict):
        return {key: without(value, added) for key, value in described.items() if key not in added}
    if isinstance(described, list):
        return [value for value in described if value not in added]
    for parameter in added:
        described = described.replace(f", {parameter}", "")
    return described


@pytest.mark.fast
def test_every_public_name_is_there() -> None:
    assert set(recorded("signatures")["dir"]) <= set(dir(bs))


@pytest.mark.fast
@pytest.mark.parametrize(
    "module",
    [
        pytest.param(module, marks=[pytest.mark.slow] * module.endswith("huggingface"))  # imports transformers
        for module in ("basis_search", *record.MODULES)
    ],
)
def test_signatures_are_as_they_were(module: str) -> None:
    """Of every documented import path, those of before the folders among them."""
    found = importlib.import_module(module)
    for name, described in recorded("signatures")[module].items():
        now = without(record.described(getattr(found, name)), ADDED.get(name, ()))
        assert now == described, f"{module}.{name}"


@pytest.mark.fast
def test_settings_of_the_commands_are_as_they_were() -> None:
    now = record.commands()
    now["search"]["families"] = without(now["search"]["families"], ADDED_FAMILIES)
    for command, keys in recorded("commands").items():
        if isinstance(keys, list):
            assert set(keys) <= set(now[command]), command
        else:
            assert {key: now[command].get(key, "missing") for key in keys} == keys, command


@pytest.mark.fast
def test_formats_of_other_programs_are_as_they_were() -> None:
    now = record.formats()
    now["wandb columns"] = [c for c in now["wandb columns"] if c not in ("weighted_error", "damage")]
    assert now == recorded("formats")


@pytest.mark.parametrize("family", record.SPECS)
def test_a_pickled_module_loads(family: str) -> None:
    """Whole modules name the module that their class stood in."""
    saved = torch.load(RECORDED / "modules" / f"{family}.pt", weights_only=False)
    module = saved["module"]
    assert type(module) is bs.StructuredLinear
    with torch.no_grad():
        assert torch.allclose(module(record.an_input()), saved["output"], atol=1e-5)
        assert module.use(None)(record.an_input()).shape == (64, 16)


@pytest.mark.parametrize("family", record.SPECS)
def test_an_exported_directory_loads(family: str) -> None:
    model = bs.load_pretrained(record.a_model(), RECORDED / "exported" / family)
    model[0].use("reference")
    expected = torch.load(RECORDED / "exported" / f"{family}.pt", weights_only=True)
    with torch.no_grad():
        assert torch.allclose(model(record.an_input()), expected, atol=1e-5)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the recorded run folder, in the working directory, beside its captured layers."""
    shutil.copytree(RECORDED / "layers", tmp_path / "layers")
    shutil.copytree(RECORDED / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["basis-search"])
    return tmp_path / "run"


def test_a_run_folder_is_read(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["watch", str(run), "--once"]) == 0
    assert cli.main(["report", str(run)]) == 0
    assert cli.main(["export", str(run), "--flops", "0.8", "--latency", "2", "--out", "again"]) == 0
    ratios = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert ratios["flops"] <= 0.8
    model = bs.load_pretrained(record.a_model(), "again")
    assert any(isinstance(module, bs.StructuredLinear) for module in model)


def test_a_search_goes_on_in_a_run_folder_of_before(run: Path) -> None:
    """With new studies: those of other code are refused, and losing them loses no measurement."""
    (run / "studies.journal").unlink()
    lines = (run / "evaluations.jsonl").read_text().splitlines()
    assert cli.main(["search", "layers=layers", "run=run", "trials=2", "report=false", "budgets={flops: [0.75]}"]) == 0
    after = (run / "evaluations.jsonl").read_text().splitlines()
    assert after[: len(lines)] == lines


def test_files_of_a_run_have_the_same_fields(run: Path, tmp_path: Path) -> None:
    """Of a run from now, with those recorded: no field is gone, none changed its type."""
    arguments = ["search", "layers=layers", "run=new", "trials=2", "report=false", "budgets={flops: [0.75]}"]
    arguments.append("max_latency=inf")
    assert cli.main(arguments) == 0
    new = tmp_path / "new"
    for name in ("front.json", "plans.json", "claims.json"):
        assert_fields(json.loads((run / name).read_text()), json.loads((new / name).read_text()), name)
    exported = run / "export" / "flops-0.75", new / "export" / "flops-0.75"
    assert_fields(*(json.loads((folder / "basis_search.json").read_text()) for folder in exported), "export")
    lines = [(folder / "evaluations.jsonl").read_text().splitlines()[0] for folder in (run, new)]
    assert_fields(*(json.loads(line) for line in lines), "evaluations.jsonl")


def assert_fields(before: Any, now: Any, where: str) -> None:
    if isinstance(before, dict):
        assert isinstance(now, dict), where
        for key in before:
            if key in ("spec", "kernels", "choices", "layers"):  # keyed by what was searched
                continue
            assert key in now, f"{where}: {key}"
            assert_fields(before[key], now[key], f"{where}: {key}")
    elif isinstance(before, list):
        assert isinstance(now, list), where
        if before and now:
            assert_fields(before[0], now[0], where)
    elif before is not None and now is not None:
        number = (int, float)
        assert type(before) is type(now) or (isinstance(before, number) and isinstance(now, number)), where
