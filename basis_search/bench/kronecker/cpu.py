"""Kronecker-sparse factors on the CPU: our kernels against library products, on a subset of arXiv 2405.15013's grid.

ratio = the best baseline's time over ours, alternating in one run, each checked against float64 first.
"""

from __future__ import annotations

import itertools
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from basis_search.bench.kronecker.library_products import DENSE_VALUES, Call, first_baselines, last_baselines
from basis_search.evaluation.timing import measure, torch_threads
from basis_search.families import kronecker
from basis_search.families.kronecker import (
    KroneckerChain,
    MeasuredCosts,
    blocks,
    kernels_cpu,
)
from basis_search.families.protocol import relative_gap, tolerance

Rows = list[dict[str, Any]]
Shape = tuple[int, int, int, int]
OUTER = (1, 2, 4, 16, 64)
INNER = (48, 64, 128, 192, 256)
BATCHES = (64, 256, 1024)
SIDE = 8192
TOO_SLOW = 3.0
"""A baseline whose first call takes more than this many times bmm's is not timed."""


def clock_of(threads: int) -> Callable[[], float]:
    """CPU seconds for one thread, which exclude other work on the machine; wall seconds for several."""
    return time.process_time if threads == 1 else time.perf_counter


def grid() -> list[Shape]:
    """The 62 patterns with a, d in {1, 2, 4, 16, 64}, b = c, 4c or c / 4 in {48, ..., 256} and sides up to 8192."""
    every = [
        (a, b, c, d)
        for a, d in itertools.product(OUTER, repeat=2)
        for b, c in itertools.product(INNER, repeat=2)
        if (b == c or b == 4 * c or c == 4 * b) and max(a * b * d, a * c * d) <= SIDE and a * d > 1
    ]
    return every[::2]


def ours(w: Tensor, x: Tensor, last: bool) -> Iterator[tuple[str, Call]]:
    """The fastest compiled kernel, on a factor packed beforehand."""
    isa = kernels_cpu.fastest(x)
    if isa is not None:
        packed = kernels_cpu.packed_chain(isa, [w], None, w.shape[0] * w.shape[1] * w.shape[3], last)
        yield f"cpu-{isa}", lambda: kernels_cpu.run_packed(packed, x, last)


def one(shape: Shape, batch: int, last: bool, threads: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """One row: checked against float64, then timed."""
    a, b, c, d = shape
    draw = torch.Generator().manual_seed(0)
    w = (torch.randn(shape, generator=draw) / c**0.5).to(dtype)
    x = torch.randn((a * c * d, batch) if last else (batch, a * c * d), generator=draw).to(dtype)
    wide = w.double(), x.double()
    expected = blocks.apply_last(*wide) if last else blocks.apply(*wide)
    row: dict[str, Any] = {"case": f"({a},{b},{c},{d}), batch {batch}"}
    calls: dict[str, Call] = {}
    seconds: dict[str, float] = {}
    for name, call in itertools.chain(ours(w, x, last), last_baselines(w, x) if last else first_baselines(w, x)):
        with torch_threads(threads):
            y = call()
            start = time.perf_counter()
            call()
            seconds[name] = time.perf_counter() - start
        gap = relative_gap(y, expected)
        if not gap <= tolerance(dtype, c):
            return {**row, "failure": f"{name} is {gap:.1e} off, beyond {tolerance(dtype, c):.1e}"}
        if name in ("bmm", "einsum", "views") or name.startswith("cpu-") or seconds[name] < TOO_SLOW * seconds["bmm"]:
            calls[name] = call
    if a * b * d * a * c * d <= DENSE_VALUES:
        matrix = torch.zeros(a * b * d, a * c * d, dtype=dtype)
        calls["dense"] = (lambda: matrix @ x) if last else (lambda: torch.nn.functional.linear(x, matrix))
    timings = measure(calls, "bmm", threads=threads, rounds=7, seconds=0.01, timer=clock_of(threads))
    mine = next((n for n in calls if n.startswith("cpu-")), "einsum")
    best = min((n for n in calls if n != mine and n != "dense"), key=lambda n: timings[n].ratio)
    return {
        **row, "kernel": mine, "baseline": best, "ratio": timings[best].ratio / timings[mine].ratio,
        "spread": timings[mine].ratio_spread, "microseconds": 1e6 * timings[mine].seconds,
        "time/dense": timings[mine].ratio / timings["dense"].ratio if "dense" in timings else None,
        "1/(ad)": 1 / (a * d),
    }  # fmt: skip


def summary(rows: Sequence[dict[str, Any]]) -> Rows:
    """Median ratios, over all and where d > 1; share slower than the best baseline by over 5 %; share near 1 / (ad)."""
    found = [row for row in rows if "ratio" in row]
    strided = [row for row in found if not row["case"].split(")")[0].endswith(",1")]
    near = []
    for row in found:
        _, b, c, _ = (int(v) for v in row["case"][1:].split(")")[0].split(","))
        if row["time/dense"] is not None and min(b, c) >= 64 and int(row["case"].split()[-1]) >= 256:
            near.append(row["time/dense"] <= 1.4 * row["1/(ad)"])
    result: Rows = []
    for name, some in (
        ("all", found),
        ("d > 1", strided),
        *((f"batch {n}", [r for r in found if r["case"].endswith(f" {n}")]) for n in BATCHES),
    ):
        if some:
            ratios = [row["ratio"] for row in some]
            low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
            result.append(
                {
                    "case": f"median of {len(some)}, {name}", "ratio": middle, "quartiles": f"{low:.2f} to {high:.2f}",
                    "slower by over 5 %": sum(r < 0.95 for r in ratios) / len(ratios),
                }
            )  # fmt: skip
    if near:
        result.append({"case": f"time/dense <= 1.4/(ad), {len(near)} of b, c >= 64", "share": sum(near) / len(near)})
    return result


def _over_grid(last: bool, dtype: torch.dtype, device: str, threads: int) -> Rows:
    with torch.inference_mode():
        rows = [one(shape, batch, last, threads, dtype) for shape in grid() for batch in BATCHES]
    return rows + summary(rows)


def cpu(device: str, threads: int) -> Rows:
    """One factor, float32, batch-size-first, against bmm with permutes, einsum and BSR."""
    return _over_grid(False, torch.float32, device, threads)


def last(device: str, threads: int) -> Rows:
    """One factor, float32, batch-size-last, against bmm with permutes, einsum and BLAS on strided views."""
    return _over_grid(True, torch.float32, device, threads)


def half(device: str, threads: int) -> Rows:
    """One factor, stored in bfloat16, batch-size-first and -last: every eighth pattern of the grid, batch 256."""
    rows: Rows = []
    with torch.inference_mode():
        for flag in (False, True):
            some = [one(shape, 256, flag, threads, torch.bfloat16) for shape in grid()[::8]]
            rows += [{**row, "layout": "last" if flag else "first"} for row in some + summary(some)]
    return rows


def small(device: str, threads: int) -> Rows:
    """Blocks of 2 to 16, sides 1024, batch-size-first, float32."""
    rows = []
    with torch.inference_mode():
        for size, batch in itertools.product((2, 4, 8, 16), BATCHES):
            count = 1024 // size
            for d in (1, 4, 16, count):
                rows.append(one((count // d, size, size, d), batch, False, threads))
    return rows + summary(rows)


def chains(device: str, threads: int) -> Rows:
    """Whole chains, batch-size-first and -last, against dense and, batch-size-last, lazylinop's ksm."""
    ksm = _ksm()
    rows: Rows = []
    for side, batch in itertools.product((256, 1024, 4096), (16, 256, 1024)):
        if side == 4096 and batch == 1024:
            continue  # seconds per dense call
        root = 1 << (side.bit_length() - 1) // 2
        costs = MeasuredCosts(batch)
        dyadic = KroneckerChain.dyadic(side)
        with torch_threads(threads):
            groups, _ = kronecker.best_fusion(dyadic, costs)
        named = {
            "dyadic": dyadic,
            "dyadic, fused": dyadic.fuse(groups),
            "Monarch": KroneckerChain.monarch(side, side, root, side // root),
        }
        for name, chain in named.items():
            rows.append(_chain_row(f"{side}, batch {batch}, {name}", chain, batch, threads, ksm))
    return rows


def _ksm() -> Any:
    """lazylinop's product; None without the extra `bench`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from lazylinop.butterfly import ksm
    except ImportError:
        return None
    return ksm


def _chain_row(case: str, chain: KroneckerChain, batch: int, threads: int, ksm: Any) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(0)
    factors = [torch.randn(p.storage, generator=draw) / p.c**0.5 for p in chain]
    rows, columns = chain.shape
    x = torch.randn(batch, columns, generator=draw)
    across = x.T.contiguous()
    matrix = torch.randn(rows, columns, generator=draw)
    calls: dict[str, Call] = {"dense": lambda: torch.nn.functional.linear(x, matrix)}
    isa = kernels_cpu.fastest(x)
    if isa is not None:
        first, after = (kernels_cpu.packed_chain(isa, factors, None, rows, flag) for flag in (False, True))
        calls["ours"] = lambda: kernels_cpu.run_packed(first, x)
        calls["ours, bsl"] = lambda: kernels_cpu.run_packed(after, across, True)
    if ksm is not None:
        operator = ksm(factors if len(factors) > 1 else factors[0])
        calls["ksm"] = lambda: operator @ across
    expected = kronecker.multiply(x.double(), [w.double() for w in factors])
    with torch_threads(threads):
        for name, call in calls.items():
            if name == "dense":
                continue
            y = call().T if name in ("ksm", "ours, bsl") else call()
            if not relative_gap(y, expected) <= tolerance(torch.float32, max(p.c for p in chain)) * len(chain):
                return {"case": case, "failure": f"{name} is {relative_gap(y, expected):.1e} off"}
    with torch.inference_mode():
        timings = measure(calls, "dense", threads=threads, rounds=7, seconds=0.01, timer=clock_of(threads))
    row: dict[str, Any] = {"case": case, "factors": len(chain), "density": chain.density}
    for name in calls:
        if name != "dense":
            row[f"{name} / dense"] = timings[name].ratio
    if "ksm" in timings and "ours" in timings:
        row["ksm / ours"] = timings["ksm"].ratio / min(timings["ours"].ratio, timings["ours, bsl"].ratio)
    return row


PARTS: dict[str, Callable[..., Rows]] = {"cpu": cpu, "last": last, "half": half, "small": small, "chains": chains}
