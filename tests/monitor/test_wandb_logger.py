"""Tracking with wandb: offline files are read back, "off" imports nothing, and a failing wandb stops no search."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb_server

from basis_search.errors import BadInput
from basis_search.evaluation.candidate import Evaluation
from basis_search.evaluation.pareto import ParetoFront
from basis_search.monitor import wandb_logger
from basis_search.monitor.timeouts import CallThread

Write = Callable[..., Path]
Made = Callable[..., Evaluation]

# Replays a run's evaluations into a tracker; from argv: folder, mode, first and last evaluation. A third of the way
# through, an optional fifth argument breaks wandb: "mute" silences its server, "kill" ends its process.
REPLAY = """
import os, signal, sys, urllib.request
from pathlib import Path
from basis_search.monitor import wandb_logger
from basis_search.planning.plan import plan
from basis_search.evaluation.candidate import Evaluation
from basis_search.evaluation.pareto import ParetoFront
import json
folder, mode, first, last = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
wandb_logger.INIT_SECONDS, wandb_logger.FINISH_SECONDS = 2.0, 5.0
if len(sys.argv) > 5:
    wandb_logger.CALL_SECONDS, wandb_logger.SHARE = 3.0, 1.0  # tables at once: a call waits for the server
lines = (folder / "all.jsonl").read_text().splitlines()
fronts = {}
config = {"seed": 3, "storage": "postgresql://me:s3cret@host/db", "spaces": {"lowrank": {"step": 4}}, "worker": 0}
with wandb_logger.start(mode, folder, config) as tracker:
    for line in lines[first:last]:
        e = Evaluation.from_json(json.loads(line))
        with (folder / "evaluations.jsonl").open("a") as file:
            file.write(line + "\\n")
        fronts[e.candidate.layer] = fronts.get(e.candidate.layer, ParetoFront()).add(e)
        tracker.evaluation(e, fronts)
        if len(sys.argv) > 5 and line is lines[last // 3]:
            if sys.argv[5] == "mute":
                urllib.request.urlopen(os.environ["WANDB_BASE_URL"] + "/mute").read()
            for child in " ".join(p.read_text() for p in Path("/proc/self/task").glob("*/children")).split():
                if sys.argv[5] == "kill" and "wandb-core" in Path(f"/proc/{child}/cmdline").read_text():
                    os.kill(int(child), signal.SIGKILL)
                    print("killed")
    tracker.finish(fronts, [plan(fronts, {"flops": 1.0})], folder / "export")
print("searched on")
"""


def replay(
    folder: Path, mode: str, first: int, last: int, home: Path, *words: str, **more: str
) -> subprocess.CompletedProcess[str]:
    """In a subprocess, so that neither wandb's service nor its files outlive the test."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    return subprocess.run(
        [sys.executable, "-c", REPLAY, str(folder), mode, str(first), str(last), *words],
        env=clean | {"HOME": str(home), **more}, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture
def folder(write_run: Write) -> Path:
    run = write_run(layers=2, trials=4)
    (run / "evaluations.jsonl").rename(run / "all.jsonl")
    (run / "export" / "flops-0.50").mkdir(parents=True)
    (run / "export" / "flops-0.50" / "config.json").write_text('{"layers": []}')
    return run


def records(path: Path) -> Iterator[Any]:
    """The records of wandb's offline file: LevelDB's log format behind 7 bytes of header, protobuf inside."""
    from wandb.proto import wandb_internal_pb2

    data, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        if kind == 0:
            return
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # full, or the last of several
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def offline_files(run: Path) -> list[Path]:
    return sorted(run.glob("wandb/offline-run-*/*.wandb"))


def history(read_back: list[Any]) -> list[dict[str, Any]]:
    """Each logged step as a dict, nested where wandb nests."""
    found = []
    for record in read_back:
        if record.WhichOneof("record_type") == "history":
            step: dict[str, Any] = {}
            for item in record.history.item:
                *outer, name = item.nested_key or [item.key]
                inner = step
                for key in outer:
                    inner = inner.setdefault(key, {})
                inner[name] = json.loads(item.value_json)
            found.append(step)
    return found


def test_offline_files_hold_table_hypervolume_and_artifact(folder: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (folder / "all.jsonl").read_text().splitlines()]
    assert len(lines) >= 20
    done = replay(folder, "offline", 0, len(lines), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "searched on" in done.stdout
    (file,) = offline_files(folder)
    read_back = list(records(file))

    (run,) = [r.run for r in read_back if r.WhichOneof("record_type") == "run"]
    assert run.run_id == wandb_logger.run_id(folder, 0)
    assert (run.project, run.run_group, run.job_type) == ("basis_search", "run", "search")
    config = {u.key: json.loads(u.value_json) for u in run.config.update}
    assert config["seed"] == 3
    assert config["storage"] == "postgresql://..."
    assert "s3cret" not in file.read_bytes().decode("latin-1")

    steps = history(read_back)
    fronts = ParetoFront.of(
        Evaluation.from_json(d) for d in lines if d["candidate"]["layer"] == "blocks.0.attention.qkv"
    )
    assert last(steps, "hypervolume/blocks.0.attention.qkv") == pytest.approx(fronts.hypervolume())
    per_layer = [s["hypervolume/blocks.0.attention.qkv"] for s in steps if "hypervolume/blocks.0.attention.qkv" in s]
    assert per_layer == sorted(per_layer)
    assert per_layer[0] < per_layer[-1]
    assert [s["trial"] for s in steps if "failed" in s] == list(range(1, len(lines) + 1))
    metrics = {r.metric.name or r.metric.glob_name: r.metric for r in read_back if r.HasField("metric")}
    assert metrics["*"].step_metric == "trial"

    table = json.loads((file.parent / "files" / last(steps, "evaluations")["path"]).read_text())
    assert table["columns"] == list(wandb_logger.COLUMNS)
    assert len(table["data"]) == len(lines)
    for row, line in zip(table["data"], lines, strict=True):
        told = dict(zip(table["columns"], row, strict=True))
        assert (told["layer"], told["family"]) == (line["candidate"]["layer"], line["candidate"]["family"])
        assert json.loads(told["spec"]) == line["candidate"]["spec"]
        assert told["error"] == line["error"]
        assert told["failure"] == (line["failure"] or "")
    front = json.loads((file.parent / "files" / last(steps, "front")["path"]).read_text())
    on_front = json.loads((folder / "front.json").read_text())["layers"]
    shown = [dict(zip(front["columns"], row, strict=True)) for row in front["data"]]
    assert len(shown) == sum(line["failure"] is None for line in lines)
    assert {(row["layer"], row["error"]) for row in shown if row["on_front"]} == {
        (name, e["error"]) for name, front in on_front.items() for e in front
    }
    assert any(not row["on_front"] for row in shown)  # dominated points are logged and marked
    plots = {name for step in steps for name in step if name.endswith(("/flops", "/latency"))}
    assert {"model/flops", "layers/blocks.0.attention.qkv/flops", "layers/blocks.0.attention.output/latency"} <= plots
    plot = last(steps, "layers/blocks.0.attention.qkv/flops")
    drawn = json.loads((file.parent / "files" / plot["path"]).read_text())
    names = {trace["name"] for trace in drawn["data"]}
    assert {"front", "lowrank", "lowrank, dominated"} <= names or {"front", "stl", "stl, dominated"} <= names
    assert last(steps, "plans")["nrows"] == 1
    assert {"front_flops_table", "front_latency_table"} <= {key for s in steps for key in s}

    artifacts = [r.artifact for r in read_back if r.WhichOneof("record_type") == "artifact"]
    (artifact,) = [a for a in artifacts if a.type == "layer-configs"]
    paths = {entry.path for entry in artifact.manifest.contents}
    assert {"export/flops-0.50/config.json", "front.json", "plans.json", "config.yaml"} <= paths


def last(steps: list[dict[str, Any]], key: str) -> Any:
    return [s[key] for s in steps if key in s][-1]


def test_resumed_search_keeps_its_id_and_all_its_rows(folder: Path, tmp_path: Path) -> None:
    for first, end in ((0, 10), (10, 22)):
        done = replay(folder, "offline", first, end, tmp_path)
        assert done.returncode == 0, done.stderr
    before, after = (list(records(file)) for file in offline_files(folder))
    ids = {r.run.run_id for r in before + after if r.WhichOneof("record_type") == "run"}
    assert ids == {wandb_logger.run_id(folder, 0)}
    assert [s["trial"] for s in history(after) if "failed" in s] == list(range(11, 23))
    assert last(history(after), "evaluations")["nrows"] == 22


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "nobody is logged in"),
        ({"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}, "the server gives no run"),
    ],
)
def test_logged_out_or_down_is_reported_once_and_recorded_offline(
    folder: Path, tmp_path: Path, environment: dict[str, str], said: str
) -> None:
    done = replay(folder, "online", 0, 22, tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert "searched on" in done.stdout
    assert done.stderr.count(said) == 1
    (file,) = offline_files(folder)
    assert last(history(list(records(file))), "evaluations")["nrows"] == 22


KEY = {"WANDB_API_KEY": "0" * 40}


def test_online_run_reaches_the_server_and_is_resumed_under_its_id(folder: Path, tmp_path: Path) -> None:
    with wandb_server.serving() as server:
        for first, end in ((0, 21), (21, 30)):
            done = replay(folder, "online", first, end, tmp_path, WANDB_BASE_URL=server.url, **KEY)
            assert done.returncode == 0, done.stderr
            assert "without it" not in done.stderr
    (name,) = server.runs
    assert name == wandb_logger.run_id(folder, 0)
    assert (server.runs[name]["groupName"], server.runs[name]["jobType"]) == ("run", "search")
    assert server.runs[name]["exit"] == 0
    sent = server.history[name]
    assert [row["trial"] for row in sent if "failed" in row] == list(range(1, 31))
    assert [row["_step"] for row in sent] == list(range(len(sent)))  # one history, not two
    table = [row["evaluations"] for row in sent if "evaluations" in row][-1]
    rows = json.loads(server.files[f"{name}/{table['path']}"])["data"]
    assert len(rows) == 30
    layers = [key for key, a in server.artifacts.items() if a["artifactTypeName"] == "layer-configs"]
    assert len(layers) == 2
    assert all(server.artifacts[key]["state"] == "COMMITTED" for key in layers)
    manifest = json.loads(server.files[f"manifest/{layers[0]}"])["contents"]
    assert {"export/flops-0.50/config.json", "front.json", "evaluations.jsonl"} <= set(manifest)
    assert "s3cret" not in str(server.runs) + str(server.history)
    assert not [path for path, data in server.files.items() if b"s3cret" in data]


def test_a_server_that_never_answers_is_reported_once_and_the_run_is_recorded_offline(
    folder: Path, tmp_path: Path
) -> None:
    with wandb_server.serving() as server:
        server.mute.set()
        done = replay(folder, "online", 0, 22, tmp_path, WANDB_BASE_URL=server.url, **KEY)
    assert done.returncode == 0, done.stderr
    assert "searched on" in done.stdout
    assert done.stderr.count("recording offline") == 1
    (file,) = offline_files(folder)
    assert last(history(list(records(file))), "evaluations")["nrows"] == 22


@pytest.mark.parametrize("accident", ["mute", "kill"])
def test_a_wandb_that_breaks_in_the_middle_is_reported_once_and_stops_nothing(
    folder: Path, tmp_path: Path, accident: str
) -> None:
    with wandb_server.serving() as server:
        done = replay(folder, "online", 0, 30, tmp_path, accident, WANDB_BASE_URL=server.url, **KEY)
    assert done.returncode == 0, done.stderr
    assert "searched on" in done.stdout
    assert ("killed" in done.stdout) == (accident == "kill")
    assert done.stderr.count("the search goes on without it") == 1
    (file,) = sorted(folder.glob("wandb/run-*/*.wandb"))
    if accident == "mute":  # all is on disk, and `wandb sync` sends it later
        assert [step["trial"] for step in history(list(records(file))) if "failed" in step][:5] == [1, 2, 3, 4, 5]


def test_a_slow_server_gets_everything_in_the_end(folder: Path, tmp_path: Path) -> None:
    with wandb_server.serving() as server:
        server.delay = 0.2
        done = replay(folder, "online", 0, 22, tmp_path, WANDB_BASE_URL=server.url, **KEY)
    assert done.returncode == 0, done.stderr
    assert "without it" not in done.stderr
    sent = server.history[wandb_logger.run_id(folder, 0)]
    assert [row["trial"] for row in sent if "failed" in row] == list(range(1, 23))


@pytest.mark.fast
def test_a_call_that_hangs_is_waited_for_until_its_timeout() -> None:
    thread, release = CallThread(), threading.Event()
    done: list[int] = []
    thread.call(lambda: done.append(1), 10)
    with pytest.raises(ZeroDivisionError):
        thread.call(lambda: 1 // 0, 10)
    with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
        thread.call(release.wait, 0.05)
    begun = thread.begin(lambda: done.append(2))  # queued behind the hanging call
    assert done == [1]
    release.set()
    thread.wait(begun, 10)
    thread.call(lambda: done.append(3), 10)
    assert done == [1, 2, 3]


@pytest.mark.fast
def test_tables_are_put_off_while_they_exceed_their_share_of_the_time(
    tmp_path: Path, evaluation: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", Broken(10**9))
    monkeypatch.setattr(wandb_logger, "FIRST_TABLE", 1)
    for share, tables in ((0.0, 1), (1e9, 5)):
        monkeypatch.setattr(wandb_logger, "SHARE", share)
        tracker = wandb_logger.WandbTracker("offline", tmp_path, {})
        logged: list[int] = []
        monkeypatch.setattr(tracker, "_log_evaluations", lambda logged=logged: logged.append(1))
        with tracker:
            for _ in range(6):
                tracker.evaluation(evaluation("layer"), {})
            assert len(logged) == tables


@pytest.mark.slow
@pytest.mark.fast
def test_off_imports_no_wandb(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from basis_search.monitor import wandb_logger\n"
        "with wandb_logger.start('off', Path('nowhere'), {}) as tracker:\n"
        "    tracker.evaluation(None, {}); tracker.finish({}, [])\n"
        "print('wandb' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "False"
    assert not list(tmp_path.iterdir())


@pytest.mark.fast
def test_unknown_mode_is_refused_with_the_near_miss(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no tracking 'ofline'; did you mean 'offline'"):
        wandb_logger.start("ofline", tmp_path, {})


@pytest.mark.fast
def test_ids_are_the_same_each_time_and_differ_between_runs_and_workers(tmp_path: Path) -> None:
    one = tmp_path / "a run: #1"
    assert wandb_logger.run_id(one, 0) == wandb_logger.run_id(tmp_path / "x" / ".." / "a run: #1", 0)
    assert len({wandb_logger.run_id(one, 0), wandb_logger.run_id(one, 1), wandb_logger.run_id(tmp_path / "b", 0)}) == 3
    assert not set("/\\#?%: ") & set(wandb_logger.run_id(one, 0))


class Broken(types.ModuleType):
    """A wandb whose call number `after` fails, and all later ones."""

    def __init__(self, after: int):
        super().__init__("wandb")
        self.left = after

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("the line is dead")
        return self

    def __setitem__(self, key: str, value: Any) -> None:
        self()


@pytest.mark.fast
@pytest.mark.parametrize("after", range(14))
def test_wandb_that_breaks_at_any_call_is_reported_once_and_stops_nothing(
    after: int, tmp_path: Path, evaluation: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", Broken(after))
    e = evaluation("layer")
    with wandb_logger.start("offline", tmp_path, {}) as tracker:
        for _ in range(3):
            tracker.evaluation(e, {"layer": ParetoFront((e,))})
        tracker.finish({"layer": ParetoFront((e,))}, [], tmp_path)
    said = capsys.readouterr().err
    assert said.count("the line is dead") == 1
    assert said.count("the search goes on") == 1


@pytest.mark.fast
def test_an_error_of_the_search_itself_passes_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", Broken(10**6))
    with pytest.raises(ZeroDivisionError), wandb_logger.start("offline", tmp_path, {}):
        raise ZeroDivisionError
