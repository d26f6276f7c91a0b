"""Both latencies of a CUDA device are shown, in the report, on the terminal and in wandb; nothing of them for a CPU."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from basis_search import report
from basis_search.evaluation.candidate import Evaluation
from basis_search.evaluation.timing import Device
from basis_search.monitor import wandb_logger
from basis_search.monitor.progress import SearchProgress, render
from basis_search.report import clocks
from basis_search.report.comparison import compare
from basis_search.report.panels import describe
from basis_search.report.run_data import read

pytestmark = pytest.mark.fast

Write = Callable[..., Path]
Made = Callable[..., Evaluation]
GPU = Device("NVIDIA Test", 132, "sm_90", 0, "2.13.0")
GRAPH = {"latency_graph": 2e-5, "latency_graph_ratio": 0.8, "latency_graph_spread": 0.01, "timed": "graph"}


def on_gpu(e: Evaluation, **changes: Any) -> Evaluation:
    data = e.to_json() | {
        "device": vars(GPU), "latency": 1e-4, "latency_ratio": 3.0, "host_seconds": 9e-5, **changes,
    }  # fmt: skip
    return Evaluation.from_json(data)


def text(progress: SearchProgress) -> str:
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(render(progress))
    return console.export_text()


@pytest.mark.slow
def test_the_report_shows_both_clocks_and_why_a_kernel_has_no_graph(write_run: Write) -> None:
    folder = write_run()
    assert "CUDA graph" not in report.write(folder).read_text()
    reason = "it waits for the device: <item>"
    lines = []
    for line in map(json.loads, (folder / "evaluations.jsonl").read_text().splitlines()):
        if line["failure"] is None:
            waits = line["candidate"]["family"] == "pq"
            changes = {"uncaptured": {"torch": reason}} if waits else GRAPH
            line |= on_gpu(Evaluation.from_json(line), **changes).to_json()
        lines.append(json.dumps(line) + "\n")
    (folder / "evaluations.jsonl").write_text("".join(lines))
    page = report.write(folder).read_text()
    for words in ("Eager calls and CUDA graphs", "On NVIDIA Test the latency of", "Launching takes the host 80%",
                  "it waits for the device: &lt;item&gt;", "132 multiprocessors"):  # fmt: skip
        assert words in page
    rows = {row.family: row for row in clocks.by_family(read(folder).evaluations)}
    assert (rows["dense"].eager, rows["dense"].graph, rows["pq"].graph) == (3.0, 0.8, None)


def test_one_candidate_says_both_and_a_cpu_says_nothing(evaluation: Made) -> None:
    there = on_gpu(evaluation("a"), **GRAPH)
    assert "time 0.8 of dense" in describe(there)
    assert "eager 3 of dense (100 µs), host 90 µs a call" in describe(there)
    assert "CUDA graph 0.8 of dense (20 µs), the host's share of eager 80%" in describe(there)
    assert "eager" not in describe(evaluation("a"))
    assert clocks.which_counts([evaluation("a")]) == ""
    assert clocks.by_family([evaluation("a")]) == []


def test_the_terminal_names_the_device_and_the_clock(evaluation: Made) -> None:
    progress = SearchProgress("run")
    progress.add(evaluation("a"))
    assert "minimised" not in text(progress)
    progress = SearchProgress("run")
    progress.add(on_gpu(evaluation("a"), **GRAPH))
    assert "On NVIDIA Test the search minimised the latency of calls replayed from a CUDA graph" in text(progress)


def test_runs_by_different_clocks_are_noted(write_run: Write, tmp_path: Path, evaluation: Made) -> None:
    folder = write_run()
    here, there = read(folder), read(folder)
    assert not any("calls here" in note for note in compare(here, there).notes)
    for entry in there.entries:
        if entry.evaluation.failure is None:
            object.__setattr__(entry, "evaluation", on_gpu(entry.evaluation, **GRAPH))
    assert any("graph calls in the other run" in note for note in compare(here, there).notes)


def test_wandb_is_given_both(tmp_path: Path, evaluation: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[dict[str, Any]] = []
    run = SimpleNamespace(
        log=logged.append, define_metric=lambda *a, **k: None, finish=lambda **k: None, summary={}, id="x", url=None
    )
    fake = SimpleNamespace(init=lambda **k: run, Settings=lambda **k: None, Table=lambda **k: None, __version__="0")
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with wandb_logger.WandbTracker("offline", tmp_path, {}) as tracker:
        tracker.evaluation(evaluation("a"), {})
        tracker.evaluation(on_gpu(evaluation("a"), **GRAPH), {})
    cpu, gpu = (values for values in logged if "failed" in values)
    assert not [name for name in cpu if name.startswith("clock/")]
    assert (gpu["latency_ratio"], gpu["clock/eager_ratio"], gpu["clock/graph_ratio"]) == (0.8, 3.0, 0.8)
    assert gpu["clock/host_share"] == pytest.approx(0.8)
