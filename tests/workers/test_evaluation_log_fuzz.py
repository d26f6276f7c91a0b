"""Evaluation logs and journals cut at every byte or filled with any bytes: whole lines are read, others refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from basis_search.errors import BadInput
from basis_search.evaluation.candidate import Evaluation
from basis_search.monitor.watch import RunReader
from basis_search.report.run_data import read
from basis_search.study.optuna_storage import Journal
from basis_search.workers.evaluation_log import Record

Made = Callable[..., Evaluation]


@pytest.fixture
def three(evaluation: Made) -> list[Evaluation]:
    return [evaluation("layer", "lowrank", {"rank": rank}) for rank in (1, 2, 3)]


def written(folder: Path, evaluations: list[Evaluation]) -> bytes:
    path = folder / "evaluations.jsonl"
    path.unlink(missing_ok=True)
    record = Record(path)
    for e in evaluations:
        record.add(e, worker=0)
    return path.read_bytes()


@pytest.mark.slow
def test_a_record_cut_at_every_byte_keeps_every_whole_line_and_goes_on(
    tmp_path: Path, three: list[Evaluation], evaluation: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = written(tmp_path, three)
    path, later = tmp_path / "evaluations.jsonl", evaluation("layer", "lowrank", {"rank": 9})
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        kept = whole[:length].count(b"\n")
        record = Record(path)
        assert list(record) == three[:kept]
        record.add(later)
        lines = path.read_bytes().splitlines()
        assert [Evaluation.from_json(json.loads(line)) for line in lines] == [*three[:kept], later]
        assert ("cut off by a crash" in capsys.readouterr().err) == (length > 0 and whole[length - 1] != 10)


@pytest.mark.slow
def test_a_report_and_a_watcher_read_the_whole_lines_of_a_cut_record(tmp_path: Path, three: list[Evaluation]) -> None:
    whole = written(tmp_path, three)
    path = tmp_path / "evaluations.jsonl"
    first = whole.index(b"\n") + 1
    for length in range(first, len(whole)):
        path.write_bytes(whole[:length])
        kept = whole[:length].count(b"\n")
        assert len(RunReader(tmp_path).update().evaluations) == kept
        assert len(read(tmp_path).entries) in (kept, kept + 1)  # without its newline a whole line is one, too


@pytest.mark.slow
def test_a_journal_cut_at_every_byte_goes_on_with_its_whole_lines(tmp_path: Path) -> None:
    first = tmp_path / "journal"
    study = optuna.create_study(study_name="fc/lowrank", storage=optuna.storages.JournalStorage(Journal(str(first))))
    study.optimize(lambda trial: trial.suggest_int("rank", 1, 4), n_trials=2)
    whole = first.read_bytes()
    for length in range(len(whole) + 1):
        path = tmp_path / f"cut-{length}"
        path.write_bytes(whole[:length])
        storage = optuna.storages.JournalStorage(Journal(str(path)))
        known = [study.study_name for study in optuna.get_all_study_summaries(storage)]
        assert known == ["fc/lowrank"][: whole[:length].count(b"\n")]
        optuna.create_study(study_name="fc/stl", storage=storage)
        lines = path.read_bytes().splitlines()
        assert lines[:-1] == whole[: whole.rfind(b"\n", 0, length) + 1].splitlines()
        assert json.loads(lines[-1])["study_name"] == "fc/stl"
        path.unlink()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b'{"x": 1}', "this is no evaluation of basis_search: it has no schema_version"),
        (b"{", "this is not JSON"),
        (b"[" * 100_000, "this is not JSON"),
        (b'{"schema_version": 99}', "this evaluation has schema version 99"),
    ],
)
def test_a_damaged_line_is_reported_with_its_place_each_time(
    tmp_path: Path, three: list[Evaluation], line: bytes, sentence: str
) -> None:
    path = tmp_path / "evaluations.jsonl"
    lines = written(tmp_path, three).splitlines()
    path.write_bytes(b"\n".join([lines[0], b"", lines[1]]) + b"\n")
    record = Record(path)
    with path.open("ab") as file:
        file.write(line + b"\n" + lines[2] + b"\n")
    place = f"^{re.escape(str(path))}, line 4: {sentence}"
    for read_again in (record.refresh, record.refresh, lambda: Record(path), lambda: RunReader(tmp_path).update()):
        with pytest.raises(BadInput, match=place):
            read_again()
    with pytest.raises(BadInput, match=place):
        record.add(three[2])


@pytest.mark.parametrize("error", ["abc", [], {}])
def test_an_evaluation_whose_numbers_are_none_is_refused(three: list[Evaluation], error: object) -> None:
    with pytest.raises(BadInput, match="this is no evaluation of basis_search: "):
        Evaluation.from_json(three[0].to_json() | {"error": error})


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_in_a_record_are_refused_or_read(
    tmp_path: Path, three: list[Evaluation], data: st.DataObject
) -> None:
    content = bytearray(written(tmp_path, three))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    path = tmp_path / "evaluations.jsonl"
    path.write_bytes(content)
    for reader in (Record, lambda p: read(p.parent), lambda p: RunReader(p.parent).update()):
        with suppress(BadInput):  # anything else that it raises is a failure
            reader(path)
