"""Parts of a long job as child processes: each with a time limit and a JSON file of its own, resumable, one table."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from basis_search.bench.run_suite import table
from basis_search.files import read_json, write_json

PASSED, FAILED, LATE, INTERRUPTED = "passed", "failed", "out of time", "interrupted"
FORMAT = "basis_search.part"
GRACE_SECONDS = 5.0
"""Between the signal that interrupts a part and the one that kills it."""
TAIL = 25
"""Lines of a failed part's output that are shown."""


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        name: of the part, and of its files NAME.json and NAME.log.
        seconds: time limit.
        command: arguments of Python; `{file}` stands for the part's JSON file.
        aim: what it does, for the table.
    """

    name: str
    seconds: float
    command: Sequence[str]
    aim: str


class PartFile:
    """A part's JSON file as its process writes it: {"results": {key: value}, "summary": text}, after every result."""

    def __init__(self, path: Path):
        self.path = path
        self.document: dict[str, Any] = read_json(path) if path.exists() else {}
        self.results: dict[str, Any] = self.document.setdefault("results", {})

    def add(self, key: str, value: Any) -> None:
        """Stores a JSON value and writes the file."""
        self.results[key] = value
        write_json(self.path, self.document)

    def of(self, key: str, run: Callable[[], Any]) -> Any:
        """The value of that key, computed by `run` unless it is stored."""
        if key not in self.results:
            self.add(key, run())
        return self.results[key]

    def summarise(self, text: str, unfinished: bool = False) -> None:
        """A few words for the table; an unfinished part goes on with the next command, although it has passed."""
        self.document.update(summary=text, unfinished=unfinished)
        write_json(self.path, self.document)


def run_parts(parts: Sequence[Part], out: Path, stamp: str, environment: dict[str, str] | None = None) -> int:
    """Runs the parts in turn and prints a table of all.

    A part that has passed with the same stamp is not run again, unless it says that it is unfinished; it goes on with
    the results that its file holds, and so does one that was interrupted or ran out of time. Ctrl-C, or SIGTERM, ends
    the running part and leaves what was written.

    Args:
        parts: in their order; a failed one does not stop the others.
        out: folder of the files.
        stamp: names the code and the device; results of another one are discarded.
        environment: of the processes; by default this one's.

    Returns:
        0; 1 where a part failed or ran out of time; 130 when interrupted.
    """
    out.mkdir(parents=True, exist_ok=True)
    interrupted = False
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for part in parts:
            _run(part, out, stamp, environment)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        signal.signal(signal.SIGTERM, before)
    rows = [_row(part, out) for part in parts]
    print(f"\n{table(rows)}\n\nresults: {out}", flush=True)
    if interrupted:
        return 130
    return 0 if all(row["state"] == PASSED for row in rows) else 1


def _run(part: Part, out: Path, stamp: str, environment: dict[str, str] | None) -> None:
    path = out / f"{part.name}.json"
    known = read_json(path) if path.exists() else {}
    if known.get("stamp") != stamp:
        known = {}
    if known.get("state") == PASSED and not known.get("unfinished"):
        print(f"== {part.name}: passed before", flush=True)
        return
    print(f"== {part.name}: {part.aim}, at most {part.seconds:.0f} s", flush=True)
    head = {"format": FORMAT, "schema_version": 1, "part": part.name, "stamp": stamp, "limit": part.seconds}
    spent = float(known.get("seconds", 0.0))
    write_json(path, {**head, "state": INTERRUPTED, "seconds": spent, "results": known.get("results", {})})
    start, state = time.monotonic(), INTERRUPTED
    log = out / f"{part.name}.log"
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    command = [sys.executable, *flags, *(argument.replace("{file}", str(path)) for argument in part.command)]
    try:
        with log.open("ab") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
            try:
                state = PASSED if process.wait(part.seconds) == 0 else FAILED
            except subprocess.TimeoutExpired:
                state = LATE
            finally:
                _end(process)
    finally:
        now = read_json(path)
        write_json(path, {**now, **head, "state": state, "seconds": spent + time.monotonic() - start})
    if state == FAILED:
        lines = log.read_text(errors="replace").splitlines()[-TAIL:]
        print("\n".join(f"   {line}" for line in lines), flush=True)
    print(f"== {part.name}: {state} after {time.monotonic() - start:.0f} s", flush=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Interrupts the process and its children, and kills what is left."""
    for how, wait in ((signal.SIGINT, GRACE_SECONDS), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, how)
        except ProcessLookupError:
            break
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            continue


def _row(part: Part, out: Path) -> dict[str, Any]:
    path = out / f"{part.name}.json"
    found = read_json(path) if path.exists() else {}
    return {
        "part": part.name,
        "state": found.get("state", "not run"),
        "seconds": round(found.get("seconds", 0.0), 1),
        "limit": part.seconds,
        "results": len(found.get("results", {})),
        "": found.get("summary", ""),
    }
