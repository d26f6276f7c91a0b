"""search_model(): one layer of a kind is searched, the others evaluate its front, and dead workers lose nothing."""

from __future__ import annotations

import json
import os
import pickle
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import basis_search as bs
from basis_search.evaluation.fitted_store import FittedStore
from basis_search.study import model_search
from basis_search.study.model_search import _portable, search_model
from basis_search.workers import subprocess_evaluator
from basis_search.workers.evaluation_log import Record

if TYPE_CHECKING:
    from fake_cuda_devices import FakeCuda


def layers_of_two_kinds() -> bs.Layers:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 48), nn.Linear(48, 48), nn.Linear(48, 48), nn.Linear(48, 64))
    return bs.capture(model, [torch.randn(64, 48) for _ in range(2)])


@pytest.mark.parametrize("workers", [1, 2])
def test_every_layer_of_a_kind_is_evaluated_on_the_same_specs(workers: int) -> None:
    layers, record, seen = layers_of_two_kinds(), Record(), list[str]()
    fronts = search_model(
        layers, ("dense", "lowrank"), trials=3, record=record, workers=workers, watch=lambda e: seen.append(e.kind)
    )
    assert list(fronts) == ["0", "1", "2", "3"]
    tables = {layer.name: {e.candidate.spec for e in record.of(layer.content_hash)} for layer in layers}
    assert len(tables["0"]) == 4
    assert tables["1"] == tables["2"] <= tables["0"]  # the leader's dominated specs are not tried again
    assert {e.candidate.spec for e in fronts["0"].evaluations} == tables["1"]
    assert len(seen) == len(record)
    assert len(set(seen)) == 2
    again = len(record)
    search_model(layers, ("dense", "lowrank"), trials=3, record=record, watch=lambda e: pytest.fail("evaluated again"))
    assert len(record) == again


def test_a_worker_that_is_killed_loses_no_evaluation_and_no_front(tmp_path: Path) -> None:
    layers, record = layers_of_two_kinds(), Record(tmp_path / "evaluations.jsonl")
    killed: list[int] = []

    def watch(evaluation: bs.Evaluation) -> None:
        if not killed:
            state = json.loads((tmp_path / "claims.json").read_text())
            at_work = {claim["worker"] for claim in state["claims"].values()} or set(state["workers"])
            killed.append(next(worker["pid"] for name, worker in state["workers"].items() if name in at_work))
            os.kill(killed[0], signal.SIGKILL)

    fronts = search_model(layers, ("dense", "lowrank"), trials=4, workers=2, record=record, watch=watch)
    assert killed
    assert killed[0] != os.getpid()
    assert all(front.evaluations for front in fronts.values())
    lines = [json.loads(line) for line in record.path.read_text().splitlines()] if record.path else []
    keys = [(line["layer_hash"], line["candidate"]["hash"]) for line in lines]
    assert len(keys) == len(set(keys)) == len(record)
    assert [len(record.of(layers[name].content_hash, "lowrank")) for name in "03"] == [4, 4]
    state = json.loads((tmp_path / "claims.json").read_text())
    assert not state["claims"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_candidate_that_ends_its_process_is_the_only_failure(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL is what the system sends where memory runs out."""
    tell, ended = subprocess_evaluator.SubprocessEvaluator._send, list[dict[str, Any]]()

    def deadly(self: subprocess_evaluator.SubprocessEvaluator, order: dict[str, Any]) -> None:
        if order.get("family") == "lowrank" and not ended:
            ended.append(order["spec"])
            assert self._process is not None
            self._process.send_signal(number)
            self._process.wait()
        tell(self, order)

    monkeypatch.setattr(subprocess_evaluator.SubprocessEvaluator, "_send", deadly)
    layers, record = layers_of_two_kinds(), Record()
    fronts = search_model(layers, ("dense", "lowrank"), trials=3, record=record)
    assert all(front.evaluations for front in fronts.values())
    (failure,) = [e for e in record if e.failure and not e.stopped]
    assert number.name in (failure.failure or "")
    assert ended == [{"rank": failure.candidate.spec.rank}]


@pytest.mark.parametrize(
    ("limit", "reason"),
    [("TRIAL_SECONDS", "it took longer than 1e-09 s"), ("MEMORY_SHARE", r"it took more than [\d.e-]+ GiB of memory")],
)
def test_a_candidate_beyond_its_limits_is_a_failure(limit: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_search, limit, 1e-9)
    with pytest.raises(bs.BadInput, match=rf"the layer '0'.*the first failed: {reason}"):
        search_model(layers_of_two_kinds(), ("lowrank",), trials=1)


def test_two_leaders_and_bad_input() -> None:
    layers, record = layers_of_two_kinds(), Record()
    search_model(layers, ("lowrank",), trials=3, record=record, leads=2)
    searched = [len(record.of(layers[name].content_hash)) for name in ("0", "1", "3")]
    assert min(searched) >= 3
    union = {
        e.candidate.spec for name in "01" for e in bs.ParetoFront.of(record.of(layers[name].content_hash)).evaluations
    }
    assert {e.candidate.spec for e in record.of(layers["2"].content_hash)} <= union
    with pytest.raises(bs.BadInput, match="leads is 0"):
        search_model(layers, leads=0)
    with pytest.raises(bs.BadInput, match="no layer was given"):
        search_model([])
    with pytest.raises(bs.BadInput, match="did you mean 'lowrank'"):
        search_model(layers, ("lowrnk",), trials=1)
    with pytest.raises(bs.BadInput, match="no family accepts the layer 'narrow'"):
        search_model([bs.Layer.from_linear(nn.Linear(1, 1), torch.randn(64, 1), "narrow")], ("lowrank",))


def test_a_record_is_opened_again_in_another_process_where_it_has_a_file(tmp_path: Path) -> None:
    record = Record(tmp_path / "evaluations.jsonl", tmp_path / "cache")
    record.fitted = FittedStore(tmp_path / "fitted")
    bs.search(layers_of_two_kinds()["0"], ("dense",), 1, record=record)
    again = pickle.loads(pickle.dumps(record))
    assert list(again) == list(record)
    assert again.fitted.folder == tmp_path / "fitted"
    assert again.leases.worker_id != record.leases.worker_id
    with pytest.raises(TypeError, match="belongs to this process alone; give it a path"):
        pickle.dumps(Record())


def test_layers_reach_other_processes_with_tensors_on_the_cpu(fake_cuda: FakeCuda) -> None:
    """And with the device that they run on."""
    layer = layers_of_two_kinds()["0"].to("cuda:1")
    there = layer.on_device()
    assert there.weight.device == torch.device("cuda:1")
    portable = _portable(there)
    assert {getattr(portable, name).device.type for name in ("weight", "inputs", "held_out")} == {"cpu"}
    assert (portable.device, portable.content_hash) == (torch.device("cuda:1"), layer.content_hash)
    assert _portable(layer) is layer
