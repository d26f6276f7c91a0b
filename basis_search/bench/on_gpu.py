"""What ./scripts/gpu runs: the GPU tests, the main job, tuning and the benches of a GPU, each within its time.

python -m basis_search.bench.on_gpu [--parts tests,job,tune,bench] [--seconds 390] [--out DIR] [--device cuda|cpu]

`--seconds` is for all parts, shared as their limits are, or of single parts: tests=60,bench=300. With --device cpu it
rehearses without a GPU: GPU tests are skipped, the main job runs on small layers, tuning is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import torch

from basis_search.bench.timed_parts import Part, run_parts
from basis_search.errors import BadInput, near_miss
from basis_search.evaluation.code_version import code_version
from basis_search.evaluation.timing import fingerprint

ROOT = Path(__file__).resolve().parents[2]
SECONDS = {"tests": 90.0, "job": 60.0, "tune": 90.0, "bench": 150.0}
MOST_PROCESSES = 8
"""Of the tests: compiling kernels takes cores, the kernels share one GPU."""
INSIDE = 0.85
"""Of a part's limit, after which tuning and benches end by themselves; the rest is for the start and the last case."""


def parts(device: str, limits: Mapping[str, float], tuning: Path) -> list[Part]:
    """The parts with those limits, in seconds, on "cuda" or, as a rehearsal, on "cpu"; the tuning file's folder."""
    small = ["--features", "32", "--rows", "128", "--dtype", "float32"] if device == "cpu" else []
    processes = min(MOST_PROCESSES, os.cpu_count() or 1) if importlib.util.find_spec("xdist") else 0
    tests = ["-m", "pytest", "-q", "-m", "gpu", "--import-mode=importlib", "-p", "stored_outcomes", "--stored={file}"]
    inside = {name: f"{INSIDE * limit:.0f}" for name, limit in limits.items()}
    commands = {
        "tests": [*tests, *(["-n", str(processes)] if processes > 1 else []), str(ROOT / "tests")],
        "job": ["-m", "basis_search.bench.main_job", "{file}", "--device", device, *small],
        "tune": ["-m", "basis_search.bench.tune_part", "{file}", "--out", str(tuning)],
        "bench": ["-m", "basis_search.bench.every_suite", "{file}", "--device", device],
    }
    for name in ("tune", "bench"):
        commands[name] += ["--seconds", inside.get(name, "1")]
    aims = {
        "tests": "pytest -m gpu",
        "job": "capture, search, plan, replace and export two layers",
        "tune": "block sizes for the shapes of the benches",
        "bench": "quick form of every bench of a GPU",
    }
    return [Part(name, limits[name], commands[name], aims[name]) for name in limits]


def limits_of(chosen: list[str], seconds: str | None) -> dict[str, float]:
    """Seconds of the chosen parts: their own, a total shared in proportion, or "tests=60,bench=300"."""
    limits = {name: SECONDS[name] for name in SECONDS if name in chosen}
    if not seconds:
        return limits
    try:
        if "=" not in seconds:
            total = float(seconds)
            given = {name: total * limit / sum(limits.values()) for name, limit in limits.items()}
        else:
            given = {name: float(value) for name, value in (pair.split("=") for pair in seconds.split(","))}
    except ValueError as problem:
        raise BadInput(f"--seconds={seconds} is no number of seconds; write 300, or tests=60,bench=300") from problem
    _check_names(list(given), "--seconds")
    if not all(0 < value < float("inf") for value in given.values()):
        raise BadInput(f"--seconds={seconds} leaves a part no time; give more than 0")
    return {name: given.get(name, limit) for name, limit in limits.items()}


def _check_names(names: list[str], option: str) -> None:
    for name in names:
        if name not in SECONDS:
            raise BadInput(f"{option}: there is no part {name!r}{near_miss(name, list(SECONDS))}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}; ./scripts/gpu --help lists the options")


def main(arguments: list[str] | None = None) -> int:
    parser = _Parser("scripts/gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(SECONDS), help="names, with commas between")
    parser.add_argument("--seconds", help="for all parts, or NAME=SECONDS with commas between")
    parser.add_argument("--out", type=Path, help="folder of the results; one per device if not given")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--wheels", help="a folder that ./scripts/gpu-wheels filled, where no index is reached")
    try:
        options = parser.parse_args(arguments)
        chosen = [name for name in options.parts.split(",") if name]
        _check_names(chosen, "--parts")
        if not chosen:
            raise BadInput("--parts names no part; choose from " + ", ".join(SECONDS))
        limits = limits_of(chosen, options.seconds)
        if options.device == "cuda" and not torch.cuda.is_available():
            raise BadInput("torch sees no NVIDIA GPU here; --device cpu rehearses without one")
        if options.device == "cpu" and limits.pop("tune", None) is not None:
            print("tune is left out: there is no GPU to tune for")
        device = fingerprint(torch.device(options.device), 1)
    except BadInput as refusal:
        print(refusal, file=sys.stderr)
        return 2
    out = options.out or ROOT / "runs" / "gpu" / re.sub(r"[^A-Za-z0-9]+", "-", device.name).strip("-")
    support = str(ROOT / "tests" / "support")
    path = os.pathsep.join(filter(None, [support, os.environ.get("PYTHONPATH", "")]))
    tuning = out.absolute() / "tuning"
    tuning.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "BASIS_SEARCH_TUNING": str(tuning)}
    print(f"device {device.name}, torch {device.torch}, results in {out}", flush=True)
    stamp = f"{code_version()} {device.name} {device.torch}"
    return run_parts(parts(options.device, limits, tuning), out, stamp, environment)


if __name__ == "__main__":
    sys.exit(main())
