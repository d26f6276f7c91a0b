"""Reading and counting for the report: damaged and unfinished run folders, use of time, failures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from markupsafe import escape

from basis_search import report
from basis_search.errors import BadInput
from basis_search.evaluation.candidate import Evaluation
from basis_search.report import findings
from basis_search.report.run_data import read
from basis_search.workers.evaluation_log import Entry

pytestmark = pytest.mark.fast

ARITHMETIC = ("multiplications", "additions")
Write = Callable[..., Path]
Made = Callable[..., Evaluation]


@pytest.mark.slow
def test_slower_in_spite_of_fewer_flops_is_counted(write_run: Write) -> None:
    folder = write_run(layers=1)
    lines = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    fewer = [d for d in lines if not d["failure"] and sum(d["cost"][k] for k in ARITHMETIC) < 130_000_000]
    slower = [d for d in fewer if d["latency_ratio"] > 1]
    assert 0 < len(slower) < len(fewer)
    sentence = findings.why_slower(read(folder))
    assert sentence.startswith(f"{len(slower)} of the {len(fewer)} candidates with fewer FLOPs than dense are slower")
    assert "memory" in sentence
    assert escape(sentence) in report.write(folder).read_text()


@pytest.mark.slow
def test_an_unfinished_run_is_reported_up_to_its_last_evaluation(write_run: Write) -> None:
    folder = write_run(measured=False)
    whole = read(folder)
    for name in ("front.json", "plans.json", "config.yaml"):
        (folder / name).unlink()
    assert {n: f.evaluations for n, f in read(folder).fronts.items()} == {
        n: f.evaluations for n, f in whole.fronts.items()
    }
    words = report.write(folder).read_text()
    assert "running or was stopped" in words
    assert not (folder / "front_flops.png").exists()
    assert (folder / "layers.png").exists()


@pytest.mark.slow
def test_an_incomplete_last_line_is_skipped_and_noted(write_run: Write) -> None:
    folder = write_run(layers=1)
    file = folder / "evaluations.jsonl"
    whole = len(read(folder).entries)
    file.write_bytes(file.read_bytes()[:-40])
    run = read(folder)
    assert len(run.entries) == whole - 1
    assert f"Line {whole} of evaluations.jsonl, the last, is incomplete" in report.write(folder).read_text()


def test_time_is_split_into_fit_check_timing_and_overhead(evaluation: Made) -> None:
    e = evaluation("a")  # 0.6 s
    records = [Entry(e, 0, 0, 100.0, 100.7), Entry(e, 0, 1, 100.8, 101.5), Entry(e, 0, 2, 301.5, 302.2),
               Entry(e, 1, 3, 100.0, 100.6)]  # fmt: skip
    spent = findings.spent(records)
    assert (spent.fit, spent.check, spent.timing) == pytest.approx((0.8, 0.4, 1.2))
    assert spent.paused == pytest.approx(200.0)
    assert spent.overhead == pytest.approx(0.1 * 3 + 0.1)  # around each of worker 0's, and between the first two
    assert findings.spent([Entry(e)]).overhead is None


def test_failures_that_differ_only_in_numbers_are_counted_together(evaluation: Made) -> None:
    reasons = ["gap 1.2e-3 beyond 4e-6", "gap 7.9e-5 beyond 4e-6", "the fitted operator's output is not finite"]
    found = findings.failures(
        [evaluation(f"layer{i}", failure=r) for i, r in enumerate(reasons)] + [evaluation("fine")]
    )
    assert [(f.times, f.reason, f.layers) for f in found] == [
        (2, reasons[0], ["layer0", "layer1"]),
        (1, reasons[2], ["layer2"]),
    ]


@pytest.mark.slow
def test_passwords_are_not_shown(write_run: Write) -> None:
    folder = write_run(layers=1)
    (folder / "config.yaml").write_text("storage: postgresql://me:s3cret@host/db\n")
    assert "s3cret" not in report.write(folder).read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("evaluations.jsonl", None, "no run folder: it holds no evaluations.jsonl"),
        ("evaluations.jsonl", "", "holds no evaluation; run the search"),
        ("evaluations.jsonl", '{"schema', "holds no evaluation; run the search"),
        ("evaluations.jsonl", '{"schema_version": 99}\n', "line 1: .* schema version 99"),
        ("evaluations.jsonl", "[]\n", "line 1: this is no evaluation"),
        ("front.json", "{", "is not JSON"),
        ("front.json", "{}", "no schema_version"),
        ("front.json", '{"schema_version": 1}', "is not a front"),
        ("front.json", '{"schema_version": 2, "layers": {}}', "schema version 2, but this basis_search reads up to 1"),
        ("plans.json", '{"schema_version": 1, "plans": [{"name": "x"}]}', "holds no plans"),
        ("plans.json", '{"schema_version": 7}', "schema version 7"),
        ("summary.json", '{"schema_version": 1, "model": "x"}', "is not a summary"),
        ("summary.json", '{"schema_version": 3}', "schema version 3"),
    ],
)
def test_damaged_run_folders_are_refused_in_one_sentence(
    write_run: Write, name: str, content: str | None, message: str
) -> None:
    folder = write_run(layers=1)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(BadInput, match=message):
        report.write(folder)
    assert not (folder / "report.html").exists()


@pytest.mark.slow
def test_missing_and_unwritable_folders_are_refused_in_one_sentence(write_run: Write, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"there is no run folder .*nowhere"):
        report.write(tmp_path / "nowhere")
    folder = write_run(layers=1)
    (folder / "report.html").mkdir()
    with pytest.raises(BadInput, match="the report cannot be written to"):
        report.write(folder)
