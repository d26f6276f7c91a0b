"""Many worker processes of one study: speed-up, overhead at ten thousand trials, kill -9, 32 workers at once.

Journals always; PostgreSQL too where BASIS_SEARCH_STORAGE names one, as `tests/support/postgres.py COMMAND` sets up.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import signal
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna

from basis_search.bench.search.fleet import Fleet, correlated, fleet
from basis_search.errors import BadInput
from basis_search.evaluation.candidate import Candidate, Evaluation, failed
from basis_search.families import family as family_named
from basis_search.layers.layer import Layer
from basis_search.run.search_run import open_record
from basis_search.study import optuna_storage, samplers
from basis_search.study.optuna_study import OBJECTIVES, quiet
from basis_search.study.proposals import draw
from basis_search.study.search import search
from basis_search.workers.evaluation_log import Record

Rows = list[dict[str, Any]]
FAMILIES = ("lowrank", "stl", "kronecker", "pq")
"""Families with many specs: every trial is a fit, a correctness check and a timing."""
TRIALS_PER_FAMILY = 200 // len(FAMILIES)


def _places() -> list[str]:
    """Available storages."""
    return ["journal"] + (
        ["postgresql"] if optuna_storage.is_database(os.environ.get(optuna_storage.ENVIRONMENT)) else []
    )


@quiet()
def workers(device: str, threads: int) -> Rows:
    """200 trials on two workers against one: wall time from the first command to the end of the last; limit 1.8.

    Specs are drawn beforehand and enqueued in the studies, so that both do the same work. Layers differ in weights but
    not in shape, since a database would answer from earlier evaluations. "apart": two such searches at once with
    separate studies and clocks, the upper bound on this machine's cores.
    """
    options = (
        f"families=[{','.join(FAMILIES)}]",
        f"trials={TRIALS_PER_FAMILY}",
        "sampler=random",
        f"threads={threads}",
    )
    rows = []
    for place in _places():
        seconds, shares = {}, {}
        for count in (1, 2):
            with _prepared(count, place, options) as some:
                seconds[count] = _timed([some] * count)
                lines = some.lines()
                assert len(lines) == TRIALS_PER_FAMILY * len(FAMILIES), f"{len(lines)} evaluations"
                assert not any(line.get("cached") for line in lines), "nothing was to be known beforehand"
                spent = [sum(line["seconds"].values()) for line in lines]
                shares[count] = sum(line["seconds"].get("clock", 0.0) for line in lines) / sum(spent)
        with (
            _prepared(3, place, options, own_clock=True) as some,
            _prepared(4, place, options, own_clock=True) as other,
        ):
            apart = _timed([some, other])
        rows.append(
            {
                "case": f"{place}, {len(lines)} trials", "one worker": seconds[1], "two workers": seconds[2],
                "ratio": seconds[1] / seconds[2], "limit": 1.8, "share of the clock": shares[1],
                "of two workers": shares[2], "two searches apart": apart, "ratio apart": 2 * seconds[1] / apart,
            }
        )  # fmt: skip
    return rows


@contextlib.contextmanager
def _prepared(seed: int, place: str, options: Sequence[str], own_clock: bool = False) -> Iterator[Fleet]:
    """A search of a layer by seed with its specs enqueued; the specs are the same for every seed."""
    layer = correlated(1024, 256, 256, seed=seed)
    with fleet(layer, place, *options, own_clock=own_clock) as some:
        some.run.mkdir()
        for name in FAMILIES:
            study = _study(layer, name, some.record(), some.location)
            for proposal in draw(
                correlated(1024, 256, 256, seed=1), name, family_named(name).Space(), 4 * TRIALS_PER_FAMILY
            )[:TRIALS_PER_FAMILY]:
                study.enqueue_trial(dict(proposal.params))
        yield some


def _timed(fleets: Sequence[Fleet]) -> float:
    """Seconds from the first start to the last end, with one worker per entry."""
    start = time.perf_counter()
    for some in fleets:
        some.start()
    for some in fleets:
        some.wait()
    return time.perf_counter() - start


FINISHED_TRIALS = 10_000
"""Trials in the study before the timing."""
TIMED_TRIALS = 30


@quiet()
def trials(device: str, threads: int) -> Rows:
    """Seconds of ask, suggest and tell with 10,000 finished trials in the study; limit 0.1 s.

    "whole loop" adds look-up, lease and storing. The sampler is the one `samplers.choose` picks: NSGA-II.
    """
    layer, family, rows = correlated(4096, 4096, 64, 64), "kronecker", []
    space = family_named(family).Space()
    finished = _finished(layer, family, space)
    for place in _places():
        with tempfile.TemporaryDirectory() as folder:
            location = Path(folder) / "journal" if place == "journal" else os.environ[optuna_storage.ENVIRONMENT]
            run = Path(folder) / f"run-{uuid.uuid4().hex[:8]}"
            run.mkdir()
            record = open_record(run, location)
            study = _study(layer, family, record, location)
            study.add_trials(finished)
            study.sampler = samplers.make(
                samplers.choose("auto", layer, family, space, FINISHED_TRIALS), 0, FINISHED_TRIALS
            )
            asks, tells = [], []
            for _ in range(TIMED_TRIALS):
                start = time.perf_counter()
                trial = study.ask()
                family_named(family).suggest(trial, layer, space)
                asked = time.perf_counter()
                study.tell(trial, [0.5, 0.5, 0.5])
                asks.append(asked - start)
                tells.append(time.perf_counter() - asked)
            ask, tell = statistics.median(asks), statistics.median(tells)
            both = [a + t for a, t in zip(asks, tells, strict=True)]
            loop = _loop(layer, family, location, record)
            rows.append(
                {
                    "case": f"{place}, {type(study.sampler).__name__}", "ask and suggest": ask, "tell": tell,
                    "together": statistics.median(both), "slowest": max(both), "limit": 0.1, "whole loop": loop,
                }
            )  # fmt: skip
    return rows


def _study(layer: Layer, family: str, record: Record, location: optuna_storage.Location) -> optuna.Study:
    """A study under the name that a search of the run uses."""
    name = "/".join(part for part in (record.run, layer.name, family) if part)
    storage = optuna_storage.open_storage(location)
    return optuna.create_study(storage=storage, study_name=name, directions=["minimize"] * len(OBJECTIVES))


def _finished(layer: Layer, family: str, space: Any) -> list[optuna.trial.FrozenTrial]:
    """Finished trials with random specs and values."""
    study = optuna.create_study(
        directions=["minimize"] * len(OBJECTIVES), sampler=optuna.samplers.RandomSampler(seed=0)
    )
    rng = random.Random(0)
    for _ in range(FINISHED_TRIALS):
        trial = study.ask()
        family_named(family).suggest(trial, layer, space)
        study.tell(trial, [rng.random() for _ in OBJECTIVES])
    return study.get_trials(deepcopy=False)


def _loop(layer: Layer, family: str, location: optuna_storage.Location, record: Record) -> float:
    """Seconds per trial of the search's own loop when evaluating costs nothing."""
    spent: list[float] = []
    last = time.perf_counter()

    def judge(layer: Layer, family: str, spec: Any, *, threads: int = 1, **_: Any) -> Evaluation:
        made = failed(layer, Candidate(layer.name, family, spec), "", threads=threads)
        return dataclasses.replace(made, failure=None, error=0.5, latency=1e-3, latency_ratio=0.5, gap=0.0)

    def watch(evaluation: Evaluation) -> None:
        nonlocal last
        spent.append(time.perf_counter() - last)
        last = time.perf_counter()

    search(layer, (family,), TIMED_TRIALS, storage=location, record=record, sampler="nsga2", judge=judge, watch=watch)
    return statistics.median(spent[1:])


def kills(device: str, threads: int, count: int = 50, trials: int = 150, crew: int = 3, delay: float = 4.0) -> Rows:
    """kill -9 of workers during evaluations; everything stored before a kill must still be stored at the end.

    Limits: no evaluation lost, none made twice, all `trials` done. A kill comes at most `delay` seconds after a lease
    was seen.
    """
    layer, rows = correlated(384, 256, 64), []
    for place in _places():
        rng, killed, seen = random.Random(0), 0, dict[str, Evaluation]()
        options = (f"families=[{','.join(FAMILIES)}]", f"trials={trials}", f"threads={threads}", "sampler=random")
        with fleet(layer, place, *options) as some:
            some.run.mkdir()
            record = some.record()
            while killed < count:
                while sum(w.poll() is None for w in some.workers) < crew:
                    some.start()
                _check_ended(some)
                board = record.leases.state()
                busy = {claim["worker"] for claim in board["claims"].values()}
                here = [w["pid"] for name, w in board["workers"].items() if name in busy]
                alive = [w for w in some.workers if w.poll() is None and w.pid in here]
                if alive:
                    time.sleep(rng.uniform(0, delay))
                    record.refresh()
                    for evaluation in record:
                        seen.setdefault(evaluation.key, evaluation)
                    victim = rng.choice(alive)
                    victim.send_signal(signal.SIGKILL)
                    victim.wait()
                    killed += 1
                time.sleep(0.05)
            some.workers = [w for w in some.workers if w.returncode != -signal.SIGKILL]
            some.start()
            some.wait()
            rows.append(_account(place, killed, some, seen, layer))
    return rows


def _check_ended(some: Fleet) -> None:
    ended = [w.returncode for w in some.workers if w.poll() is not None and w.returncode != -signal.SIGKILL]
    if any(ended):
        raise RuntimeError(f"workers ended with {ended}: {some.log()[-2000:]}")
    if ended:
        raise BadInput(f"all trials were done before the last kill: {some.log()[-500:]}")


def _account(place: str, killed: int, some: Fleet, seen: dict[str, Evaluation], layer: Layer) -> dict[str, Any]:
    record, lines = some.record(), some.lines()
    final = {e.key: e for e in record}
    keys = [Evaluation.from_json(line).key for line in lines]
    board = record.leases.state()
    storage = optuna_storage.open_storage(some.location)
    names = [s.study_name for s in storage.get_all_studies() if record.run in s.study_name]
    studies = [optuna.load_study(study_name=name, storage=storage) for name in names]
    running = sum(t.state == optuna.trial.TrialState.RUNNING for s in studies for t in s.get_trials(deepcopy=False))
    return {
        "case": f"{place}, {killed} kills",
        "evaluations": len(final),
        "seen before a kill": len(seen),
        "lost": sum(final.get(key) != evaluation for key, evaluation in seen.items()),
        "twice": len(keys) - len(set(keys)),
        "set aside": sum("set aside" in (e.failure or "") for e in final.values()),
        "claims left": len(board["claims"]),
        "trials left running": running,
    }


def crowd(device: str, threads: int, count: int = 32, trials: int = 64) -> Rows:
    """Many workers at once on one machine; each must exit with 0, and no evaluation be made twice."""
    layer, rows = correlated(96, 64, 32), []
    for place in _places():
        with fleet(layer, place, f"families=[{','.join(FAMILIES)}]", f"trials={trials}", f"threads={threads}") as some:
            start = time.perf_counter()
            for _ in range(count):
                some.start()
            some.wait()
            wall = time.perf_counter() - start
            row = _account(place, 0, some, {}, layer)
            at_work = len({line["worker"] for line in some.lines()})
            kept = ("evaluations", "twice", "claims left", "trials left running")
            rows.append(
                {"case": f"{place}, {count} workers", "ended well": count, "with a share": at_work, "wall": wall}
                | {name: row[name] for name in kept}
            )
    return rows
