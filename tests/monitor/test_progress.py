"""Progress of a search in the terminal, and a run folder read while others write it."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from basis_search.errors import BadInput
from basis_search.evaluation.candidate import Evaluation
from basis_search.evaluation.pareto import ParetoFront
from basis_search.monitor import watch as watching
from basis_search.monitor.progress import SearchProgress, render
from basis_search.monitor.watch import RunReader, watch
from basis_search.planning.plan import plan, plan_within
from basis_search.workers.liveness import HEARTBEAT_SECONDS, MAX_MISSED_HEARTBEATS

pytestmark = pytest.mark.fast

Write = Callable[..., Path]
Made = Callable[..., Evaluation]
CONFIG = "budgets:\n  flops: [0.5]\n  latency: [0.75, 0.001]\n  parameters: []\nfamilies: [dense, pq, lowrank]\n"


def text_of(progress: SearchProgress, now: float | None = None) -> str:
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(render(progress, now))
    return console.export_text()


def test_rendering_shows_progress_budgets_workers_and_failures(write_run: Write, evaluation: Made) -> None:
    folder = write_run(layers=3, workers=2, trials=9)
    (folder / "config.yaml").write_text(CONFIG)
    lines = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    halted = evaluation("blocks.0.mlp.up", "pq", {"codebooks": 2}, failure="dominated", stopped="fit").to_json()
    lines.append(halted | {"worker": 1, "started": lines[-1]["finished"], "finished": lines[-1]["finished"] + 0.5})
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    progress = RunReader(folder).update()
    text = text_of(progress, now=max(line["finished"] for line in lines) + 5)
    assert f"{len(lines)} evaluations, 3 layers" in text
    fronts = {n: ParetoFront.of(e for e in progress.evaluations if e.candidate.layer == n) for n in progress.fronts}
    best = plan(fronts, {"flops": 0.5})
    row = next(line for line in text.splitlines() if line.startswith("flops 0.5"))
    assert f"{best.damage:.3g}" in row
    assert f"{best.ratios['latency']:.2f}" in row
    families = {e.candidate.family for e in best.choices.values()}
    assert all(family in row for family in families)
    assert re.search(r"latency 0\.001 .*nothing found so far meets it", text)
    for worker in (0, 1):
        mine = [line for line in lines if line["worker"] == worker]
        minutes = (max(m["finished"] for m in mine) - min(m["started"] for m in mine)) / 60
        shown = next(line.split() for line in text.splitlines() if line.split()[:2] == [str(worker), str(len(mine))])
        assert int(shown[2]) == sum(bool(m["stopped"]) for m in mine)
        assert int(shown[3]) == sum(m["failure"] is not None and not m["stopped"] for m in mine)
        assert float(shown[4]) == pytest.approx(len(mine) / minutes, rel=0.01)
    failed = [line for line in lines if line["failure"] and not line["stopped"]]
    assert failed
    assert re.search(rf"^ +{len(failed)} +kernel 'cpu-avx2' differs from its reference by ", text, re.MULTILINE)


def test_total_is_known_where_the_captured_layers_are(write_run: Write, tmp_path: Path) -> None:
    folder, layers = write_run(layers=2), tmp_path / "layers"
    layers.mkdir()
    names = [{"name": n} for n in ("blocks.0.up", "blocks.1.up", "head")]
    (layers / "layers.json").write_text(json.dumps({"layers": names}))
    (folder / "config.yaml").write_text(f"{CONFIG}trials: 30\nselect: ['re:blocks.*']\nlayers: {layers}\n")
    progress = RunReader(folder).update()
    assert progress.total == 2 * (1 + 30 + 30)
    assert f" of {progress.total} evaluations" in text_of(progress)
    assert " to go" in text_of(progress)
    (layers / "layers.json").unlink()
    assert RunReader(folder).progress.total is None


def test_appended_lines_are_read_and_half_a_line_is_left_for_later(write_run: Write) -> None:
    folder = write_run(layers=1)
    path = folder / "evaluations.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:50])
    reader = RunReader(folder)
    assert len(reader.update().evaluations) == 3
    path.write_bytes(b"".join(lines[:4]))
    assert len(reader.update().evaluations) == 4
    path.write_bytes(whole)
    assert len(reader.update().evaluations) == len(lines)
    path.write_bytes(whole + b'{"schema_version": 1}\n')
    with pytest.raises(BadInput, match=rf"evaluations\.jsonl, line {len(lines) + 1}: this is no evaluation"):
        reader.update()


def test_workers_show_what_they_evaluate_and_which_are_silent(
    write_run: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run(layers=1, workers=1)
    line = json.loads((folder / "evaluations.jsonl").read_text().splitlines()[0])
    board: dict[str, Any] = {
        "workers": {"a": {"number": 0, "beats": 7, "busy": True}, "b": {"number": 5, "beats": 1, "busy": True}},
        "claims": {"k": {"worker": "b", "family": "pq", "spec": {"codebooks": 8}, "layer_hash": line["layer_hash"]}},
    }
    (folder / "claims.json").write_text(json.dumps(board))
    reader, clock = RunReader(folder), [100.0]
    monkeypatch.setattr(watching.time, "monotonic", lambda: clock[0])
    text = text_of(reader.update())
    assert re.search(r"^5 .*blocks\.0\.attention\.qkv: pq codebooks=8", text, re.MULTILINE)
    assert not reader.over
    clock[0] += HEARTBEAT_SECONDS * MAX_MISSED_HEARTBEATS + 1
    board["workers"]["a"]["beats"] = 8
    (folder / "claims.json").write_text(json.dumps(board))
    workers = reader.update().workers
    assert (workers[0].silent, workers[5].silent) == (False, True)
    assert re.search(r"^5 .*silent", text_of(reader.progress), re.MULTILINE)
    (folder / "claims.json").write_text(json.dumps({"workers": {}, "claims": {}}))
    os.utime(folder / "front.json")
    reader.update()
    assert reader.over


def test_planning_for_the_screen_keeps_to_its_share_of_the_time(
    evaluation: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[int] = []

    def slow(fronts: Any, budget: Any, max_latency: float) -> Any:
        planned.append(1)
        time.sleep(0.05)
        return plan_within(fronts, budget, max_latency)

    monkeypatch.setattr("basis_search.monitor.progress.plan_within", slow)
    progress = SearchProgress("run", {"flops": [1.0]})
    for rank in range(1, 5):
        progress.add(evaluation("layer", "lowrank", {"rank": rank}))
        assert progress.best()
    assert len(planned) == 1


def test_names_from_files_are_no_markup(write_run: Write, evaluation: Made) -> None:
    folder = write_run(layers=1)
    with (folder / "evaluations.jsonl").open("a") as file:
        for failure in ("[bold red]x[/bold red]", "[/nothing]"):
            file.write(json.dumps(evaluation("[link]", "pq", {"codebooks": 2}, failure=failure).to_json()) + "\n")
    text = text_of(RunReader(folder).update())
    assert "[bold red]x[/bold red]" in text
    assert "[/nothing]" in text


@pytest.mark.parametrize("what", ["missing", "other"])
def test_no_run_folder_is_refused(tmp_path: Path, what: str) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(BadInput, match="is no run folder"):
        watch(tmp_path / what)
    with pytest.raises(BadInput, match="every is 0"):
        watch(tmp_path, every=0)


@pytest.mark.slow
def test_command_on_a_terminal_ends_when_the_search_is_over(write_run: Write) -> None:
    folder = write_run(layers=1)
    (folder / "config.yaml").write_text(CONFIG)
    lines = (folder / "evaluations.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "evaluations.jsonl").write_bytes(b"".join(lines[:5]))
    front = (folder / "front.json").read_bytes()
    (folder / "front.json").unlink()
    mine, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "basis_search.cli", "watch", str(folder), "--every", "0.1"],
        stdout=theirs, stderr=theirs, env=os.environ | {"TERM": "xterm", "COLUMNS": "120"},
    )  # fmt: skip
    os.close(theirs)
    seen = ""

    def read_until(words: str) -> None:
        nonlocal seen
        while words not in seen:
            assert select.select([mine], [], [], 120)[0], seen
            try:
                seen += os.read(mine, 65536).decode(errors="replace")
            except OSError:  # the other side is closed
                break
        assert words in seen

    read_until("5 evaluations")
    with (folder / "evaluations.jsonl").open("ab") as file:
        file.writelines(lines[5:])
    read_until(f"{len(lines)} evaluations")
    (folder / "front.json").write_bytes(front)
    threading.Thread(target=lambda: [None for _ in iter(lambda: _drain(mine), False)], daemon=True).start()
    assert process.wait(120) == 0


def _drain(terminal: int) -> bool:
    try:
        return bool(os.read(terminal, 65536))
    except OSError:
        return False


@pytest.mark.slow
def test_command_in_a_pipe_prints_once(write_run: Write) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "basis_search.cli", "watch", str(write_run(layers=1))], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert "\x1b" not in done.stdout
    assert done.stdout.count("evaluations") == 1
