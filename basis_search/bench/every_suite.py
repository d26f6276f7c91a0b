"""Every bench of a GPU in its quick form, one part after another: python -m basis_search.bench.every_suite FILE

Each takes at most its share of the seconds that are left. One that fails does not stop the others. What was begun and
not finished comes last next time.
"""

from __future__ import annotations

import argparse
import pkgutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import basis_search.bench as bench
from basis_search.bench.run_suite import run_suite, suite_named
from basis_search.bench.timed_parts import PartFile
from basis_search.config import BenchConfig
from basis_search.errors import BadInput
from basis_search.files import read_json

BEGUN = "begun"


def cases_of(device: str) -> list[tuple[str, str]]:
    """(suite, part) of the launches, and on a GPU of everything that measures nothing else."""
    found = [("launch", part) for part in suite_named("launch").PARTS]
    for module in pkgutil.iter_modules(bench.__path__) if device == "cuda" else ():
        if module.ispkg:
            suite = suite_named(module.name)
            found += [(module.name, part) for part, only in getattr(suite, "DEVICES", {}).items() if only == device]
    return found


def run(file: PartFile, device: str, cases: list[tuple[str, str]], seconds: float) -> list[str]:
    """Returns a sentence for every part that failed."""
    end = time.monotonic() + seconds
    begun = [case for case in cases if file.results.get(" ".join(case)) == BEGUN]
    ahead = [*(case for case in cases if case not in begun), *begun]
    ahead = [case for case in ahead if "rows" not in (file.results.get(" ".join(case)) or {})]
    problems = []
    for left, (suite, part) in zip(range(len(ahead), 0, -1), ahead, strict=True):
        key = f"{suite} {part}"
        file.add(key, BEGUN)
        start = time.monotonic()
        outcome: dict[str, Any]
        try:
            outcome = {"rows": _rows(suite, part, device, max(1.0, (end - start) / left))}
        except (BadInput, ImportError, RuntimeError, ValueError, ArithmeticError) as problem:
            outcome = {"failed": f"{type(problem).__name__}: {problem}"}
            problems.append(f"{key}: {outcome['failed']}")
        file.add(key, {**outcome, "seconds": time.monotonic() - start})
        done = sum("rows" in found for found in file.results.values())
        file.summarise(f"{done} of {len(cases)} tables", unfinished=done < len(cases))
    return problems


def _rows(suite: str, part: str, device: str, seconds: float) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        run_suite(BenchConfig(suite, part, device, json=str(file), quick=True, seconds=seconds))
        found: list[dict[str, Any]] = read_json(file)["rows"]
        return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=120.0)
    options = parser.parse_args(arguments)
    problems = run(PartFile(options.file), options.device, cases_of(options.device), options.seconds)
    print("\n".join(problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
