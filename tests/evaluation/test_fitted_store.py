"""The store of fitted parameters: what it keeps, what it removes, and which files it refuses."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import basis_search as bs
from basis_search.evaluation import fitted_store
from basis_search.evaluation.code_version import code_version
from basis_search.evaluation.evaluate import evaluate
from basis_search.evaluation.fitted_store import FittedStore
from basis_search.workers.evaluation_log import Record
from basis_search.workers.worker import Worker

pytestmark = pytest.mark.fast


def some_params(seed: int = 0, size: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(size, size, generator=generator).bfloat16(),
        "places": torch.randint(9, (size,), generator=generator, dtype=torch.int16),
    }


def stored(store: FittedStore, key: str, size: int = 8, on_fronts: tuple[str, ...] = ()) -> None:
    fitted_store.write(store.draft(key), key, some_params(size=size))
    store.store(key, lambda: on_fronts)


def names(store: FittedStore) -> set[str]:
    return {path.name for path in store.folder.iterdir()}


@pytest.fixture
def one(evaluation: Callable[..., bs.Evaluation]) -> bs.Evaluation:
    return dataclasses.replace(evaluation("fc"), code=code_version())


def test_what_was_stored_is_loaded(one: bs.Evaluation, tmp_path: Path) -> None:
    store = FittedStore(tmp_path / "fitted")
    stored(store, one.key)
    loaded = store.load(one)
    assert loaded.keys() == some_params().keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in some_params().items())
    assert fitted_store.find(one) is None
    store.offer([one])
    found = fitted_store.find(one)
    assert found is not None
    assert found.keys() == loaded.keys()
    assert names(store) == {f"{one.key}.safetensors"}


def test_damaged_swapped_missing_and_foreign_files_are_refused(one: bs.Evaluation, tmp_path: Path) -> None:
    store = FittedStore(tmp_path)
    with pytest.raises(bs.BadInput, match="holds no fitted parameters"):
        store.load(one)
    stored(store, one.key)
    path = store.path(one.key)
    whole = path.read_bytes()
    for damaged in (whole[:-3], whole[:-1] + bytes([whole[-1] ^ 1]), b"", b"\xff" * 64, whole[:200]):
        path.write_bytes(damaged)
        with pytest.raises(bs.BadInput, match=r"is damaged|has a header of"):
            store.load(one)
    stored(store, "another")
    shutil.copy(store.path("another"), path)
    with pytest.raises(bs.BadInput, match="not what was stored for it"):
        store.load(one)
    path.write_bytes(whole)
    store.load(one)
    with pytest.raises(bs.BadInput, match=r"basis_search 0\.0\.1.* fitted them"):
        store.load(dataclasses.replace(one, code="0.0.1+00000000.00000000"))
    fitted_store.write(path, one.key, {"weight": torch.tensor([float("nan")])})
    with pytest.raises(bs.BadInput, match="NaN or infinite"):
        store.load(one)


def test_the_oldest_go_first_and_fronts_last(tmp_path: Path) -> None:
    store = FittedStore(tmp_path)
    for index, key in enumerate("abcd"):
        stored(store, key)
        os.utime(store.path(key), (index, index))
    size = store.path("a").stat().st_size
    store.max_bytes = 4 * size
    stored(store, "e", on_fronts=("a", "c", "e"))
    assert names(store) == {"a.safetensors", "c.safetensors", "e.safetensors"}
    store.max_bytes = size - 1
    stored(store, "f", on_fronts=("f",))
    assert names(store) == set()


@pytest.mark.parametrize("links", [True, False])
def test_another_store_gets_a_copy(
    links: bool, one: bs.Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = FittedStore(tmp_path / "cache"), FittedStore(tmp_path / "run")
    assert not source.copy(one.key, target.draft(one.key))
    stored(source, one.key)
    if not links:

        def refused(*args: object) -> None:
            raise OSError("no links here")

        monkeypatch.setattr(os, "link", refused)
    assert source.copy(one.key, target.draft(one.key))
    target.store(one.key, tuple)
    assert torch.equal(target.load(one)["weight"], some_params()["weight"])
    (tmp_path / "file").write_text("")
    assert not source.copy(one.key, tmp_path / "file" / "draft")
    assert "fitted parameters cannot be copied, an export fits again" in capsys.readouterr().err
    source.remove([one.key])
    assert torch.equal(target.load(one)["weight"], some_params()["weight"])


def test_drafts_are_removed(tmp_path: Path) -> None:
    store = FittedStore(tmp_path)
    store.store("never written", tuple)
    fitted_store.write(store.draft("a"), "a", some_params())
    store.discard("a")
    store.discard("a")
    assert names(store) == set()
    fitted_store.write(store.draft("b"), "b", some_params())
    stored(store, "c")
    store.remove_drafts()
    assert names(store) == {"c.safetensors"}


def test_a_folder_that_cannot_be_written_costs_the_parameters_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    fitted_store.write(tmp_path / "file" / "a.safetensors", "a", some_params())
    assert "fitted parameters cannot be stored, an export fits again" in capsys.readouterr().err


@pytest.mark.slow
def test_a_worker_stores_the_front_and_removes_what_has_left_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = bs.Layer.from_linear(torch.nn.Linear(32, 32), torch.randn(64, 32), "fc", batch=16)
    record = Record(tmp_path / "evaluations.jsonl")
    record.fitted = FittedStore(tmp_path / "fitted")
    worker = Worker(record)

    def at(rank: int, error: float, ratio: float) -> str:
        """Evaluates a rank; error and latency are given, as are FLOPs, for measured ones differ from run to run."""

        def judge(*args: object, **options: object) -> bs.Evaluation:
            found = evaluate(*args, **options)
            cost = dataclasses.replace(found.cost, multiplications=int(1e4 * ratio), additions=0)
            return dataclasses.replace(found, error=error, latency_ratio=ratio, cost=cost)

        worker.evaluator = judge
        done = worker.evaluate(layer, bs.Candidate("fc", "lowrank", bs.lowrank.Spec(rank=rank)), None)
        assert done is not None
        return f"{done.key}.safetensors"

    first, second = at(2, 0.5, 0.5), at(3, 0.4, 0.6)
    assert names(record.fitted) == {first, second}
    at(4, 0.6, 0.7)  # dominated
    assert names(record.fitted) == {first, second}
    better = at(5, 0.4, 0.5)  # dominates both
    assert names(record.fitted) == {better}
    worker.beyond_fronts = True
    dominated = at(6, 0.9, 0.9)
    assert names(record.fitted) == {better, dominated}
