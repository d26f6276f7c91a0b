"""Appending to files that a crash cut short; messages without passwords."""

from __future__ import annotations

import ast
import json
import multiprocessing
from pathlib import Path

import pytest

from basis_search import files
from basis_search.files import append_line, new_lines

pytestmark = pytest.mark.fast


def _append(path: Path, worker: int) -> None:
    for number in range(50):
        append_line(path, json.dumps([worker, number, "x" * 3000]).encode() + b"\n", durable=False)


def test_lines_of_many_processes_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    workers = [multiprocessing.get_context("fork").Process(target=_append, args=(path, i)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    lines, end = new_lines(path)
    found = [json.loads(line)[:2] for line in lines]
    assert sorted(found) == [[i, n] for i in range(3) for n in range(50)]
    assert end == path.stat().st_size


def test_a_torn_line_is_cut_off_reported_and_never_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lines"
    assert new_lines(path) == ([], 0)
    path.write_bytes(b"one\ntwo\nthr")
    assert new_lines(path) == ([b"one", b"two"], 8)
    assert append_line(path, b"four\n") == 13
    assert "lines: the last line was cut off by a crash; its 3 bytes are dropped" in capsys.readouterr().err
    assert path.read_bytes() == b"one\ntwo\nfour\n"
    assert new_lines(path, 8) == ([b"four"], 13)
    assert append_line(path, b"five\n", unless=lambda: True) == -1
    assert append_line(path, b"five\nsix\n", unless=lambda: False) == 22
    assert new_lines(path, 13) == ([b"five", b"six"], 22)


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write = tmp_path / "lines", files.os.write
    append_line(path, b"one\n")
    monkeypatch.setattr(files.os, "write", lambda descriptor, data: write(descriptor, data[:2]))
    with pytest.raises(OSError, match="the disk is full"):
        append_line(path, b"two\n")
    assert path.read_bytes() == b"one\n"


@pytest.mark.slow
def test_no_other_module_appends() -> None:
    package = Path(files.__file__).parent
    for path in package.rglob("*.py"):
        if path == Path(files.__file__):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "open":
                modes = [a.value for a in node.args if isinstance(a, ast.Constant)]
                is_log = path.name in (
                    "shared_state.py",
                    "fleet.py",
                    "timed_parts.py",
                )  # a lock; what child processes print
                assert not [m for m in modes if isinstance(m, str) and m.startswith("a")] or is_log, path
            assert not (isinstance(node, ast.Attribute) and node.attr == "O_APPEND"), path
