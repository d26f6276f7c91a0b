"""Parts of ./scripts/gpu: limits, failures, interruption, resuming; the GPU tests' outcomes; the main job."""

from __future__ import annotations

import json
import os
import signal
import textwrap
import threading
import time
from pathlib import Path

import pytest
import stored_outcomes
import torch
from fake_cuda_devices import FakeCuda

import basis_search as bs
from basis_search.bench import every_suite, main_job, on_gpu
from basis_search.bench.timed_parts import Part, PartFile, run_parts
from basis_search.errors import BadInput

WRITES = """
import json, pathlib, sys
path = pathlib.Path(sys.argv[1])
document = json.loads(path.read_text())
document["results"]["n"] = document["results"].get("n", 0) + 1
path.write_text(json.dumps(document))
"""


def part(name: str, code: str, seconds: float = 30.0) -> Part:
    return Part(name, seconds, ["-c", textwrap.dedent(WRITES + code), "{file}"], f"part {name}")


def states(out: Path) -> dict[str, str]:
    return {path.stem: json.loads(path.read_text())["state"] for path in sorted(out.glob("*.json"))}


def test_a_failed_and_a_late_part_do_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [part("a", "sys.exit('the reason')"), part("b", "import time; time.sleep(60)", 0.5), part("c", "")]
    assert run_parts(parts, tmp_path, "stamp") == 1
    assert states(tmp_path) == {"a": "failed", "b": "out of time", "c": "passed"}
    printed = capsys.readouterr().out
    assert "the reason" in printed
    assert [line.split()[0] for line in printed.splitlines() if line.startswith(("a ", "b ", "c "))] == ["a", "b", "c"]
    # Again: what passed is not run again, the others go on with their results.
    assert run_parts([parts[0], part("b", ""), parts[2]], tmp_path, "stamp") == 1
    counts = {name: json.loads((tmp_path / f"{name}.json").read_text())["results"]["n"] for name in "abc"}
    assert counts == {"a": 2, "b": 2, "c": 1}
    assert run_parts([part("a", "")], tmp_path, "another device") == 0
    assert json.loads((tmp_path / "a.json").read_text())["results"] == {"n": 1}


def test_ctrl_c_ends_the_part_and_leaves_what_was_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "slow.log"

    def press() -> None:
        while not (log.exists() and log.read_text().strip()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    slow = part("slow", "import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    assert run_parts([slow, part("next", "")], tmp_path, "stamp") == 130
    assert "next  not run" in capsys.readouterr().out
    assert states(tmp_path) == {"slow": "interrupted"}
    assert json.loads((tmp_path / "slow.json").read_text())["results"] == {"n": 1}
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text().split()[0]), 0)


def test_limits_are_shared_or_given() -> None:
    assert on_gpu.limits_of(["job", "tests"], None) == {"tests": 90, "job": 60}
    assert on_gpu.limits_of(["job", "tests"], "50") == {"tests": 30, "job": 20}
    assert on_gpu.limits_of(["job", "tests"], "job=5") == {"tests": 90, "job": 5}
    for wrong in ("soon", "jbo=3", "job=0", "job=nan"):
        with pytest.raises(BadInput):
            on_gpu.limits_of(["job"], wrong)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--parts", "jobs", "--device", "cpu"], "there is no part 'jobs'; did you mean 'job'"),
        (["--parts", "", "--device", "cpu"], "names no part"),
        (["--devise", "cpu"], "unrecognized arguments: --devise"),
        (["--device", "cuda"], "torch sees no NVIDIA GPU here"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert on_gpu.main(arguments) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_outcomes_of_tests_are_stored_and_passed_ones_not_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tests, file = tmp_path / "test_it.py", tmp_path / "tests.json"
    tests.write_text("import os\ndef test_good(): pass\ndef test_bad(): assert 'MEND' in os.environ, 'why'\n")
    command = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
        f"--rootdir={tmp_path}",
        f"--stored={file}",
        str(tests),
    ]
    for code, printed in ((1, "1 failed, 1 passed"), (0, "1 passed, 1 deselected"), (0, "2 deselected")):
        assert pytest.main(command, plugins=[stored_outcomes]) == code
        assert printed in capsys.readouterr().out
        good, bad = json.loads(file.read_text())["results"].values()
        assert good["outcome"] == "passed"
        assert ("why" in bad.get("reason", "")) == (code == 1)
        monkeypatch.setenv("MEND", "1")


def test_the_main_job_runs_on_the_double(fake_cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main_job, "FAMILIES", ("dense", "lowrank"))
    file = PartFile(tmp_path / "job.json")
    assert main_job.run(file, "cuda", torch.float32, 32, 128) == []
    stored = json.loads(file.path.read_text())["results"]
    assert stored["capture"]["devices"] == ["cuda:0"]
    assert stored["lowrank 32 -> 128"]["latency_graph"] > 0


def test_the_main_job_names_a_family_without_a_timed_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(spec: object, layer: object) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(main_job, "FAMILIES", ("dense", "lowrank"))
    monkeypatch.setattr("basis_search.families.lowrank.fit", fails)
    problems = main_job.run(PartFile(tmp_path / "job.json"), "cpu", torch.float32, 16, 64)
    assert [problem.split(":")[0] for problem in problems] == ["lowrank 16 -> 64", "lowrank 64 -> 16", "plan"]
    assert "no such instruction" in problems[0]


@pytest.mark.parametrize("reason", ["needs compute capability 8.9", "torch._scaled_mm is off by 9e-1 on a small layer"])
def test_the_main_job_excuses_a_missing_operator_and_no_wrong_one(
    reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def searched(layer: bs.Layer, family: str, record: object) -> dict[str, object]:
        asked.append(layer.batch)
        return {"refused": True, "reason": reason}

    monkeypatch.setattr(main_job, "FAMILIES", ("fp8", "weight_only"))
    monkeypatch.setattr(main_job, "_searched", searched)
    monkeypatch.setattr(main_job, "_replaced", lambda *given: {})
    file = PartFile(tmp_path / "job.json")
    problems = main_job.run(file, "cpu", torch.float32, 16, 64)
    assert len(problems) == (4 if "off by" in reason else 0)
    assert asked == [64, 64, 16, 16]
    assert ("refused: fp8, weight_only" in file.document["summary"]) == (not problems)


def test_a_bench_that_fails_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(suite: str, part: str, device: str, seconds: float) -> list[dict[str, int]]:
        assert seconds >= 1
        if part == "wrong":
            raise RuntimeError("out of resources")
        return [{"n": 1}]

    monkeypatch.setattr(every_suite, "_rows", rows)
    file = PartFile(tmp_path / "bench.json")
    file.add("stl begun", every_suite.BEGUN)
    cases = [("stl", "begun"), ("stl", "wrong"), ("pq", "gpu")]
    assert every_suite.run(file, "cuda", cases, 30.0) == ["stl wrong: RuntimeError: out of resources"]
    assert list(json.loads(file.path.read_text())["results"])[1:] == ["stl wrong", "pq gpu"]
    assert file.results["stl begun"]["rows"] == [{"n": 1}]
    assert json.loads(file.path.read_text())["unfinished"]
    assert {suite for suite, _ in every_suite.cases_of("cuda")} == {"launch", "stl", "kronecker", "pq"}
