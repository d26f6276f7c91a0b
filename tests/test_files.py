"""Appending to files that a crash cut short; messages without passwords."""

from __future__ import annotations

import ast
import json
import multiprocessing
from pathlib import Path

import pytest

from basis_search import files
from basis_search.files import append_line, new_lines, redacted, without_addresses

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
                is_log = path.name in ("shared_state.py", "fleet.py")  # a lock; what child processes print
                assert not [m for m in modes if isinstance(m, str) and m.startswith("a")] or is_log, path
            assert not (isinstance(node, ast.Attribute) and node.attr == "O_APPEND"), path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://me:pw@host:5/x", "postgresql://me:***@host:5/x"),
        ("postgresql://me:p@w@host/x", "postgresql://me:***@host/x"),
        ("postgresql://me:p:w@host/x", "postgresql://me:***@host/x"),
        ("postgresql://me:p/w?q@host/x", "postgresql://me:***@host/x"),
        ("postgresql://me:p%40w@host/x", "postgresql://me:***@host/x"),
        ("postgresql://me:p w@host/x", "postgresql://me:***@host/x"),
        ("postgresql://:pw@host/x", "postgresql://:***@host/x"),
        ("postgresql://me@firm:pw@host/x", "postgresql://me@firm:***@host/x"),
        ("postgresql://me%40firm:pw@host/x", "postgresql://me%40firm:***@host/x"),
        ("postgresql://me:a%2Fb:c@d@host:5/x?sslpassword=zzz&a=b", "postgresql://me:***@host:5/x?sslpassword=***&a=b"),
        ("postgresql://host/x?a=b&PassWord=p@w&c=d", "postgresql://host/x?a=b&PassWord=***&c=d"),
        ("host=h password=pw dbname=x", "host=h password=*** dbname=x"),
        (r"password = 'p \' w' host=h", "password = *** host=h"),
        ("dbname=x password=a&b host=h", "dbname=x password=*** host=h"),
        ("storage: postgresql+psycopg://me:pw@host/x\nseed: 0", "storage: postgresql+psycopg://me:***@host/x\nseed: 0"),
        ("[a://me:pw@host, 'b://me:pw@host']", "[a://me:***@host, 'b://me:***@host']"),
        ("postgresql://me@host/x", "postgresql://me@host/x"),
        ("postgresql://host/x", "postgresql://host/x"),
        ("grpc://host:13000", "grpc://host:13000"),
        ("/runs/one/journal", "/runs/one/journal"),
    ],
)
def test_passwords_are_masked_and_nothing_else_is(text: str, expected: str) -> None:
    assert redacted(text) == expected


def test_a_driver_s_message_loses_the_passwords_of_its_url() -> None:
    url = "postgresql://me:a%2Fb:c@d@host:5/x?sslpassword=zzz&a=b"
    assert redacted("no a/b:c@d, a%2Fb:c@d, zzz", url) == "no ***, ***, ***"
    assert redacted(f"cannot reach {url}", url) == "cannot reach postgresql://me:***@host:5/x?sslpassword=***&a=b"
    assert redacted("no password was given", "postgresql://me@host/x") == "no password was given"


def test_a_published_configuration_holds_no_address() -> None:
    config = {"storage": "postgresql://me:pw@host/x", "warm": ["s3://bucket/run", Path("runs/a")], 3: (None, 1.5)}
    assert without_addresses(config) == {
        "storage": "postgresql://...",
        "warm": ["s3://...", "runs/a"],
        "3": [None, 1.5],
    }
