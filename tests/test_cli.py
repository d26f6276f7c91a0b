"""The command line: searches from captured to exported layers, and bad input refused with status 2."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import basis_search as bs
from basis_search import cli
from basis_search.run.finish import read_plans
from basis_search.workers.run_folder import RunFolder


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 16))
    directory = tmp_path_factory.mktemp("captured")
    bs.capture(model, [torch.randn(64, 32) for _ in range(3)]).save(directory)
    return directory


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """call(*arguments) -> (status, stdout, stderr), in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["basis-search"])
        try:
            status = cli.main(list(arguments))
        except SystemExit as ending:
            status = int(ending.code or 0)
        out = capsys.readouterr()
        return status, out.out, out.err

    return run


SMALL = ("families=[dense,lowrank]", "trials=3")


def test_every_suite_of_the_benches_is_one_of_the_command() -> None:
    folders = {path.parent.name for path in (Path(cli.__file__).parent / "bench").glob("*/suite.py")}
    assert set(cli.SUITES) == folders


def test_a_search_writes_its_folder_and_an_export_loads(call: Any, captured: Path, tmp_path: Path) -> None:
    status, out, _ = call(
        "search", f"layers={captured}", *SMALL, "max_latency=inf", "budgets={flops:[0.75],latency:[0.001,100]}"
    )
    assert status == 0
    run = (tmp_path / "runs" / "latest").resolve()
    assert "no plan: nothing meets the budget of latency 0.001" in out
    written = {path.name for path in run.iterdir()}
    assert written >= {
        "config.yaml", "evaluations.jsonl", "front.json", "plans.json", "report.html", "export", "front_flops.png",
    }  # fmt: skip
    assert yaml.safe_load((run / "config.yaml").read_text())["trials"] == 3
    assert set(RunFolder(run).front()) == {"0", "2"}
    assert [plan.name for plan in read_plans(run, bs.Layers.load(captured))] == [
        "flops-0.75", "latency-100.00",
    ]  # fmt: skip
    fresh = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 16))
    bs.load_pretrained(fresh, run / "export" / "flops-0.75")
    assert isinstance(fresh[0], bs.StructuredLinear)

    status, out, _ = call("export", str(run), "--flops", "0.9", "--latency", "inf", "--out", "again")
    assert status == 0
    assert json.loads(out)["flops"] <= 0.9
    assert (tmp_path / "again" / "basis_search.json").is_file()
    status, _, err = call("export", str(run), "--flops", "0.0001", "--out", "never")
    assert status == 2
    assert "the nearest that the fronts reach is flops" in err
    assert call("report", str(run))[0] == 0


def test_the_same_command_resumes_and_evaluates_nothing_twice(call: Any, captured: Path, tmp_path: Path) -> None:
    arguments = ("search", f"layers={captured}", *SMALL, "run=here", "report=false", "export=false")
    assert call(*arguments)[0] == 0
    first = (tmp_path / "here" / "evaluations.jsonl").read_text()
    assert "was begun with" not in call(*arguments, "worker=3")[2]
    assert (tmp_path / "here" / "evaluations.jsonl").read_text() == first
    status, _, err = call(*arguments[:-3], "run=here", "trials=4", "report=false", "export=false")
    assert status == 0
    assert "here was begun with trials=3; it goes on with trials=4\n" in err
    assert [
        yaml.safe_load((tmp_path / "here" / f).read_text())["trials"] for f in ("config-1.yaml", "config.yaml")
    ] == [3, 4]
    assert (tmp_path / "here" / "evaluations.jsonl").read_text().startswith(first)


def test_evaluations_and_plans_keep_the_limits(call: Any, captured: Path, tmp_path: Path) -> None:
    """These keys have no default: hydra alone would require ++ before them."""
    options = ("families=[dense,lowrank]", "trials=3", "run=here", "report=false", "export=false")
    limits = ("limits={flops: 0.8}", "limits.parameters=0.7", "budgets.parameters=[0.9]", "max_latency=inf")
    assert call("search", f"layers={captured}", *options, *limits)[0] == 0
    plans = read_plans(tmp_path / "here", bs.Layers.load(captured))
    assert "parameters-0.90" in {plan.name for plan in plans}
    chosen = [e for plan in plans for e in plan.choices.values()]
    assert all(e.flops_ratio <= 0.8 and e.cost.parameters <= 0.7 * e.dense_cost.parameters for e in chosen)
    status, _, err = call("search", f"layers={captured}", *options, "limits={flop: 0.8}")
    assert status == 2
    assert "there is no limit on 'flop'; did you mean 'flops'?" in err


def test_presets_and_bounds_of_a_space(call: Any, captured: Path, tmp_path: Path) -> None:
    options = ("run=here", "report=false", "export=false", "trials=2")
    assert call("search", f"layers={captured}", "experiment=baselines", *options)[0] == 0
    families = {
        json.loads(line)["candidate"]["family"]
        for line in (tmp_path / "here/evaluations.jsonl").read_text().splitlines()
    }
    assert families == {"dense", "int8", "lowrank"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["serch"], "there is no command 'serch'; did you mean 'search'"),
        (["search"], "no layers are named; add layers=DIR"),
        (["search", "layers=/nowhere"], "/nowhere holds no captured layers"),
        (["search", "layers=CAPTURED", "trails=3"], "there is no setting 'trails'; did you mean 'trials'"),
        (["search", "layers=CAPTURED", "trials=many"], "trials=many: 'many' is not a whole number"),
        (["search", "layers=CAPTURED", "trial_seconds=long"], "trial_seconds=long: 'long' is not a number"),
        (["search", "layers=CAPTURED", "export=maybe"], "export=maybe: 'maybe' is not true or false"),
        (["search", "layers=CAPTURED", "families=lowrank"], "families=lowrank: it needs a list in brackets"),
        (["search", "layers=CAPTURED", "budgets=5"], "budgets=5: it needs a mapping in braces"),
        (["search", "layers=a=b"], "'layers=a=b' cannot be read as key=value"),
        (["search", "--help", "stray"], "'stray' is no override"),
        (["search", "layers=."], "holds no captured layers"),
        (["search", "layers=CAPTURED", "trials=0"], "trials is 0"),
        (["search", "layers=CAPTURED", "families=[lowrnk]"], "did you mean 'lowrank'"),
        (["search", "layers=CAPTURED", "families=[]"], "families is empty"),
        (["search", "layers=CAPTURED", "select=['re:blocks.*']"], "no captured layer matches"),
        (["search", "layers=CAPTURED", "budgets={flop:[0.5]}"], "did you mean 'flops'"),
        (["search", "layers=CAPTURED", "budgets={flops:[-1]}"], "not a fraction above 0"),
        (["search", "layers=CAPTURED", "tracking=offlin"], "did you mean 'offline'"),
        (["search", "layers=CAPTURED", "experiment=nothing"], "nothing"),
        (["search", "layers=CAPTURED", "device=cuda"], "sees no CUDA GPU here; use device='cpu'"),
        (["search", "layers=CAPTURED", "device=gpu"], "'gpu' is not a device"),
        (["search", "layers=CAPTURED", "dtype=bfloat"], "did you mean 'bfloat16'"),
        (["search", "CAPTURED"], "is no override; write key=value"),
        (["search", "layers=CAPTURED", "run=/proc/no/such"], "/proc/no/such cannot be written"),
        (["bench"], "no suite is named; add suite=NAME"),
        (["bench", "suite=slt"], "did you mean 'stl'"),
        (["bench", "suite=search", "part=plann"], "did you mean 'plan'"),
        (["bench", "suite=search", "part=plan", "device=cuda"], "torch sees no CUDA device"),
        (["discover", "format=4x4"], "'4x4' is not n x m x p"),
        (["discover", "format=2x2x2", "ring=Z3"], "Z3"),
        (["discover", "format=0x4x4"], "n = 0, but each side must be an integer from 1 to 64"),
        (["discover", "format=4x65x4", "method=numerical"], "m = 65, but each side"),
        (["discover", "format=2x4x5", "ring=Q"], "set method=numerical"),
        (["discover", "formats=some"], "formats='some' can only be all"),
        (["discover", "method=numeric"], "did you mean 'numerical'"),
        (["discover", "method=numerical", "format=2x2x2"], "name it, as in rank=23"),
        (["discover", "method=numerical", "formats=all"], "searched by walks only"),
        (["discover", "format=2x2x3", "symmetry=Z3"], "which needs square matrices"),
        (["discover", "format=2x2x2", "neighbourhood=5"], "name one, as in out=found"),
        (["report", "nowhere"], "there is no run folder 'nowhere'"),
        (["report", "."], "'.' is no run folder"),
        (["report"], "the following arguments are required: run; `basis-search report --help` lists them all"),
        (["watch", ".", "--evry", "3"], "did you mean '--every'"),
        (["watch", "."], ". is no run folder"),
        (["export", ".", "--flops", "half", "--out", "x"], "argument --flops: invalid float value: 'half'"),
        (["kernels", "--all"], "unrecognized arguments: --all; known are: --help"),
        (["export", "nowhere", "--flops", "0.5", "--out", "x"], "is no finished run"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(call: Any, captured: Path, arguments: list[str], sentence: str) -> None:
    if "device=cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device, so asking for it is not wrong here")
    status, _, err = call(*(a.replace("CAPTURED", str(captured)) for a in arguments))
    assert status == 2
    assert sentence in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


def test_a_space_that_changed_is_refused_and_nothing_is_lost(call: Any, captured: Path, tmp_path: Path) -> None:
    arguments = ("search", f"layers={captured}", *SMALL, "run=here", "report=false", "export=false")
    assert call(*arguments)[0] == 0
    before = (tmp_path / "here" / "evaluations.jsonl").read_bytes()
    step = bs.lowrank.Space()
    name = next(iter(vars(step)))
    status, _, err = call(*arguments, "trials=5", f"spaces.lowrank.{name}={getattr(step, name) * 2}")
    assert status == 2
    assert "was begun with space" in err
    assert yaml.safe_load((tmp_path / "here" / "config.yaml").read_text())["trials"] == 3
    assert (tmp_path / "here" / "evaluations.jsonl").read_bytes() == before


def test_a_newer_run_is_refused(call: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "front.json").write_text('{"schema_version": 7, "layers": {}}')
    status, _, err = call("export", "run", "--flops", "0.5", "--out", "x")
    assert status == 2
    assert "schema version 7, but this basis_search reads up to 1" in err


def _started(captured: Path, run: Path, *more: str) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", "basis_search.cli", "search", f"layers={captured}", f"run={run}", *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    record, deadline = run / "evaluations.jsonl", time.monotonic() + 120
    while not (record.exists() and record.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def test_one_interrupt_finishes_the_folder_two_stop_at_once(captured: Path, tmp_path: Path) -> None:
    process = _started(captured, tmp_path / "one", "trials=64", "report=false", "export=false")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "stopping after this evaluation" in err
    kept = (tmp_path / "one" / "evaluations.jsonl").read_text().splitlines()
    assert all(json.loads(line) for line in kept)
    assert (tmp_path / "one" / "front.json").is_file()
    assert f"{len(kept)} evaluations" in out

    process = _started(captured, tmp_path / "two", "trials=64", "report=false", "export=false")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    time.sleep(0.02)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    # 0: the evaluation ended before the second signal; the third may arrive during the exit with 130.
    assert process.returncode in (130, -signal.SIGINT, 0)
    assert all(json.loads(line) for line in (tmp_path / "two" / "evaluations.jsonl").read_text().splitlines())


def test_four_workers_share_one_study(call: Any, captured: Path, tmp_path: Path) -> None:
    # joblib reuses processes, which stay in the working directory of an earlier test: the folder is absolute.
    options = (f"run={tmp_path / 'here'}", "families=[lowrank]", "trials=4", "report=false", "export=false")
    arguments = ("search", "-m", "worker=range(4)", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *options)
    assert call(*arguments, f"layers={captured}")[0] == 0
    lines = [json.loads(line) for line in (tmp_path / "here" / "evaluations.jsonl").read_text().splitlines()]
    assert len({line["worker"] for line in lines}) > 1
    keys = {(line["candidate"]["layer"], line["candidate"]["hash"]) for line in lines}
    assert {layer for layer, _ in keys} == {"0", "2"}
    assert (tmp_path / "here" / "front.json").is_file()


def test_usage_and_help(call: Any) -> None:
    assert "usage: basis-search COMMAND" in call("--help")[1]
    assert call()[0] == 2
    assert call("--version") == (0, "0.1.0\n", "")
    assert "cpu-" in call("kernels")[1]
