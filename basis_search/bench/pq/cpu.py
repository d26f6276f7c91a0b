"""Speed of the compiled PQ kernels: products, codes and sums against torch's linear and numpy's product.

ratio = the better baseline's time over the row's, calls alternating (cold caches); `warm ratio`: calls repeated.
Every result is compared with the reference before it is timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from basis_search.errors import BadInput
from basis_search.families.pq.cache_lines import LINE_BYTES
from basis_search.families.pq.reference import encode, reference
from basis_search.families.pq.spec import BUCKETS, Spec, bounds
from basis_search.families.protocol import NOT_INSTALLED, Params, relative_gap

Rows = list[Mapping[str, Any]]
Calls = dict[str, Callable[[], object]]

SHAPES = ((10016, 512, 10, 16), (10016, 512, 100, 16), (10016, 512, 100, 64), (1024, 320, 128, 16), (49312, 27, 2, 4))
"""Rows, inputs, outputs, codebooks."""
FEW_LINES = 8
BASES = ("torch", "numpy")


def compiled() -> Any:
    """The module of compiled kernels.

    Raises:
        BadInput: it is not installed.
    """
    try:
        from basis_kernels.pq import _cpu
    except ImportError as missing:
        raise BadInput(NOT_INSTALLED) from missing
    return _cpu


def start(threads: int) -> tuple[Any, torch.Generator]:
    """The compiled module and a seeded generator, with torch set to `threads`."""
    module = compiled()
    torch.set_num_threads(threads)
    return module, torch.Generator().manual_seed(0)


def cpu(device: str = "cpu", threads: int = 1) -> Rows:
    """Encode and scan of row-major and column-major inputs, tables prepared.

    Raises:
        BadInput: the compiled kernels are not installed, or a result differs from the reference.
    """
    module, draw = start(threads)
    isa = module.instruction_sets()[-1]
    rows: Rows = []
    for n, d, m, c in SHAPES:
        params = random_operator(d, m, c, draw)
        trees, tables = make(module, params)
        few = module.Trees(_within_lines(d, c, draw), params["thresholds"])
        x, weight = torch.randn(n, d, generator=draw), torch.randn(m, d, generator=draw)
        columns = x.T.contiguous().T
        y, codes = torch.empty(n, m), torch.empty(c, n, dtype=torch.uint8).T
        expected = reference(Spec(c), params, x[:256])
        for rows_in in (x, columns):
            module.linear(trees, tables, rows_in, y, isa, threads)
            _check(y[:256], expected, f"{isa} at {n} x {d} x {m}, C = {c}")
        calls: Calls = {
            "torch": partial(torch.nn.functional.linear, x, weight),
            "numpy": partial(np.matmul, x.numpy(), weight.numpy().T),
            "row-major": partial(module.linear, trees, tables, x, y, isa, threads),
            "row-major, two threads": partial(module.linear, trees, tables, x, y, isa, 2),
            f"row-major, {FEW_LINES} cache lines": partial(module.linear, few, tables, x, y, isa, threads),
            "column-major": partial(module.linear, trees, tables, columns, y, isa, threads),
            "encode, row-major": partial(module.encode, trees, x, codes, isa, threads),
            "encode, column-major": partial(module.encode, trees, columns, codes, isa, threads),
            "scan": partial(module.scan, tables, codes, y, isa, threads),
            "touch each cache line": partial(_touch, x),
        }
        if d < FEW_LINES * LINE_BYTES // 4:
            del calls[f"row-major, {FEW_LINES} cache lines"]
        cold, warm = medians(calls), repeated(calls)
        base, warm_base = (min(t[name] for name in BASES) for t in (cold, warm))
        for what in calls:
            rows.append(
                {
                    "case": f"{n} x {d} x {m}, C={c}: {what}",
                    "baseline": "best of torch and numpy",
                    "ratio": base / cold[what],
                    "milliseconds": 1e3 * cold[what],
                    "warm ratio": warm_base / warm[what],
                    "warm milliseconds": 1e3 * warm[what],
                }
            )
    return rows


def codes(device: str = "cpu", threads: int = 1) -> Rows:
    """Codes per second of 16384 x 512 inputs, C = 16, by dtype, relative to the speeds of a copy and of a sgemm.

    Raises:
        BadInput: as `cpu`.
    """
    module, draw = start(threads)
    n, d, c = 16384, 512, 16
    params = random_operator(d, 12, c, draw)
    trees, spec = module.Trees(params["split_columns"], params["thresholds"]), Spec(c)
    square, block = torch.randn(1024, 1024, generator=draw), torch.empty(1 << 24, dtype=torch.uint8)
    peers = repeated({"sgemm": partial(torch.mm, square, square), "copy": block.clone})
    operations, bandwidth = 2 * 1024**3 / peers["sgemm"], 2 * len(block) / peers["copy"]
    rows: Rows = [
        {"case": "sgemm of 1024, operations", "a second": operations},
        {"case": "copy of 16 MiB, bytes read and written", "a second": bandwidth},
    ]
    for dtype in (torch.float32, torch.bfloat16, torch.int16, torch.int8):
        x = (3 * torch.randn(n, d, generator=draw)).to(dtype)
        columns, found = x.T.contiguous().T, torch.empty(c, n, dtype=torch.uint8).T
        expected = encode(spec, params, x).to(torch.uint8)
        for isa in module.instruction_sets():
            for layout, given in (("column-major", columns), ("row-major", x)):
                module.encode(trees, given, found, isa, threads)
                if not torch.equal(found, expected):
                    raise BadInput(f"the codes of {isa} for {dtype} rows, {layout}, differ from the reference")
                call = {"encode": partial(module.encode, trees, given, found, isa, threads)}
                speed = n * c / repeated(call, 25)["encode"]
                name = str(dtype).removeprefix("torch.")
                rows.append(
                    {"case": f"{name}, {layout}, cpu-{isa}", "baseline": "the copy's bytes", "a second": speed}
                    | {
                        "ratio": 4 * x.element_size() * speed / bandwidth,
                        "operations of sgemm a code": operations / speed,
                    }
                )
    return rows


def sums(device: str = "cpu", threads: int = 1) -> Rows:
    """Outputs per second from column-major codes of 100000 rows, 12 outputs, by instruction set.

    Raises:
        BadInput: as `cpu`.
    """
    module, draw = start(threads)
    n, m = 100000, 12
    rows: Rows = []
    for c in (16, 32, 64):
        params = random_operator(64, m, c, draw)
        trees, tables = make(module, params)
        x = torch.randn(n, 64, generator=draw)
        found = torch.empty(c, n, dtype=torch.uint8).T
        module.encode(trees, x, found, "scalar", threads)
        for averaged in (False, True):
            kind = "averaged" if averaged else "exact"
            expected = reference(Spec(c, sums=kind), params, x[:256])
            for isa in module.instruction_sets():
                for order, y in (("row-major", torch.empty(n, m)), ("column-major", torch.empty(m, n).T)):
                    call = partial(module.scan, tables, found, y, isa, threads, averaged)
                    call()
                    _check(y[:256], expected, f"{isa}, {kind} sums, C = {c}")
                    speed = n * m / repeated({"scan": call})["scan"]
                    rows.append({"case": f"C={c}, {kind}, {order}, cpu-{isa}", "outputs a second": speed})
    return rows


def _check(y: Tensor, expected: Tensor, what: str) -> None:
    gap = relative_gap(y, expected)
    if not gap <= 1e-5:
        raise BadInput(f"the kernel cpu-{what} differs from the reference by {gap:.1e}")


def make(module: Any, params: Params) -> tuple[Any, Any]:
    """Trees and tables in the compiled module's form."""
    trees = module.Trees(params["split_columns"], params["thresholds"])
    return trees, module.Tables(params["table"], params["scale"], params["offset"])


def medians(calls: Mapping[str, Callable[[], object]], rounds: int = 15) -> dict[str, float]:
    """Median seconds of each call, alternating, so that clock drift affects all alike."""
    for call in calls.values():
        call()
        call()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            samples[name].append(time.perf_counter() - start)
    return {name: float(np.median(s)) for name, s in samples.items()}


def repeated(calls: Mapping[str, Callable[[], object]], rounds: int = 15) -> dict[str, float]:
    """Median seconds of each call, repeated alone."""
    return {name: medians({name: call}, rounds)[name] for name, call in calls.items()}


def _touch(x: Tensor) -> Tensor:
    return x[:, ::16].sum()


def _within_lines(d: int, codebooks: int, draw: torch.Generator) -> Tensor:
    """Split columns within FEW_LINES cache lines of float32."""
    size = LINE_BYTES // 4
    lines = torch.randperm(max(1, d // size), generator=draw)[:FEW_LINES]
    chosen = lines[torch.randint(len(lines), (codebooks, 4), generator=draw)] * size
    return (chosen + torch.randint(min(size, d), (codebooks, 4), generator=draw)).int()


def random_operator(d: int, m: int, codebooks: int, draw: torch.Generator) -> Params:
    """Random trees on contiguous groups of columns, thresholds and full-range tables: for speed, not for quality."""
    starts = bounds(d, codebooks)
    columns = [torch.randint(b, e, (4,), generator=draw) for b, e in pairwise(starts)]
    return {
        "split_columns": torch.stack(columns).int(),
        "thresholds": torch.randn(codebooks, BUCKETS - 1, generator=draw),
        "table": torch.randint(256, (codebooks, BUCKETS, m), generator=draw).to(torch.uint8),
        "scale": torch.rand(m, generator=draw) + 0.5,
        "offset": -100.0 * codebooks * torch.rand(m, generator=draw),
    }
