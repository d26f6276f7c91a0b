"""Transfer between layers of one kind by the command line: searched layers, groups and excluded layers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import basis_search as bs
from basis_search import cli
from basis_search.evaluation.candidate import Candidate
from basis_search.families.protocol import spec_to_json
from basis_search.run.finish import export_run, read_plans
from basis_search.study import transfer
from basis_search.workers.evaluation_log import Record
from basis_search.workers.leases import Lease
from basis_search.workers.shared_state import FileState
from basis_search.workers.worker import Worker

FAMILIES = "families=[dense,lowrank,kronecker]"
GROUP = r"re:blocks\.(\d)\.(?:query|value)"


class Block(nn.Module):
    """Query and value, which have the same inputs, and an output projection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.value, self.out = nn.Linear(32, 32), nn.Linear(32, width), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale: torch.Tensor = self.value(x).mean(-1, keepdim=True)
        result: torch.Tensor = self.out(self.query(x)) * scale
        return result


class Model(nn.Module):
    """Two blocks; the second one's value is narrower, as with grouped queries."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(32), Block(16)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("blocks")
    bs.capture(Model(), [torch.randn(64, 32) for _ in range(3)]).save(directory)
    return directory


def specs_of(run: Path, layers: bs.Layers) -> dict[str, list[str]]:
    """Specs by layer, as often as they are in the record."""
    found: dict[str, list[str]] = {layer.name: [] for layer in layers}
    for line in (run / "evaluations.jsonl").read_text().splitlines():
        data = json.loads(line)
        found[data["candidate"]["layer"]].append(json.dumps(data["candidate"]["spec"]))
    return found


def test_one_layer_of_each_kind_leads_and_groups_share_specs(
    captured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["search", f"layers={captured}", FAMILIES, "trials=4", "run=one", "leads=1", f"groups=['{GROUP}']"]
    arguments += ["exclude=['blocks.0.out']", "budgets={flops:[0.8]}", "max_latency=null", "report=false"]
    assert cli.main(arguments) == 0
    run, layers = tmp_path / "one", bs.Layers.load(captured)
    specs = specs_of(run, layers)
    assert all(len(found) == len(set(found)) for found in specs.values())
    assert not specs.pop("blocks.0.out")
    square, narrow = transfer.kinds(layers[name] for name in specs).values()
    assert len(specs[square[0].name]) >= 4  # searched; the others got its front, and groups more
    proven = {
        json.dumps(e["candidate"]["spec"])
        for e in json.loads((run / "front.json").read_text())["layers"][square[0].name]
    }
    assert all(proven <= set(specs[layer.name]) for layer in square)
    assert set(specs[narrow[0].name]) > {"{}"}
    (plan,) = read_plans(run, layers)
    for block in "01":
        query, value = (plan.choices[f"blocks.{block}.{name}"].candidate for name in ("query", "value"))
        assert (query.family, query.spec) == (value.family, value.spec)
    bs.load_pretrained(Model(), run / "export" / "flops-0.80")

    capsys.readouterr()
    exported = export_run(run, {"flops": 0.9, "latency": math.inf}, tmp_path / "again")  # the run's own groups
    assert exported.choices["blocks.0.query"].candidate.spec == exported.choices["blocks.0.value"].candidate.spec
    everything = [
        "export",
        str(run),
        "--flops",
        "0.9",
        "--latency",
        "inf",
        "--group",
        r"re:blocks\..*",
        "--out",
        "all-one",
    ]
    status = cli.main(everything)
    shared = {spec for spec in specs["blocks.0.query"] if all(spec in found for found in specs.values())}
    assert (status == 0) == bool(shared)

    before = (run / "evaluations.jsonl").read_text()
    assert cli.main(arguments) == 0  # resumes: nothing is left to do
    assert (run / "evaluations.jsonl").read_text() == before


def test_two_workers_share_the_transfer(captured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    many = [
        "-m",
        "worker=0,1",
        "hydra/launcher=joblib",
        f"run={tmp_path / 'two'}",
        "leads=1",
        "report=false",
        "export=false",
    ]
    assert cli.main(["search", f"layers={captured}", FAMILIES, "trials=4", *many]) == 0
    specs = specs_of(tmp_path / "two", bs.Layers.load(captured))
    assert all(len(found) == len(set(found)) > 0 for found in specs.values())
    fronts = json.loads((tmp_path / "two" / "front.json").read_text())["layers"]
    assert set(fronts) == set(specs)


def test_a_dead_worker_s_candidate_is_taken_over(captured: Path, tmp_path: Path) -> None:
    layers, record = bs.Layers.load(captured), Record(tmp_path / "evaluations.jsonl")
    layer, dense = layers["blocks.0.query"], bs.families.family("dense")
    candidate = Candidate(layer.name, "dense", dense.Spec())
    worker = Worker(record)

    def leave_a_claim(state: Any) -> None:  # of a worker that is not on the board any more
        claim = Lease(layer.content_hash, "dense", spec_to_json(dense.Spec()), None)
        key = worker._key(layer, candidate)
        state["claims"][key] = {"worker": "gone", **claim.__dict__}

    board = record.leases._shared
    assert isinstance(board, FileState)
    with record.leases.joined():
        board.edit(leave_a_claim)
        transfer.evaluate_all(worker, [(layer, candidate)], stop=lambda: False)
    assert [e.candidate.family for e in record.of(layer.content_hash)] == ["dense"]
    assert json.loads((tmp_path / "evaluations.jsonl").read_text())["trial"] is None


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("leads=0", "leads is 0, but at least 1 is needed, or null"),
        ("groups=['re:heads.*']", "no layer matches the group 're:heads.*'"),
        ("groups=['re:(']", "'re:(' is no regular expression"),
        ("groups=['re:.*','re:blocks.*query']", "is in two groups; name it in one"),
        ("exclude=['re:.*']", "is not excluded by"),
        ("exclude=[blocks.7.out]", "there is no captured layer 'blocks.7.out'"),
    ],
)
def test_bad_settings_are_refused(
    captured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    setting: str, sentence: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert cli.main(["search", f"layers={captured}", "run=no", setting]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "no" / "evaluations.jsonl").exists()
