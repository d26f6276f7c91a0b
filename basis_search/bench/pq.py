"""Product quantisation measured: accuracy of each encoder on the digits task, and speed of encode, scan and product."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from basis_search.bench import pq_gpu
from basis_search.errors import BadInput
from basis_search.families.pq.codebook import Codebook
from basis_search.families.pq.fit import learn_encoder, prototypes
from basis_search.families.pq.kmeans import learn_centroids
from basis_search.families.pq.reference import encode, reference
from basis_search.families.pq.spec import BUCKETS, Spec, bounds
from basis_search.family import Params, relative_gap

Row = Mapping[str, Any]

AVERAGED = 16
"""Tables averaged by one tree of (a + b + 1) >> 1 in the published scan."""


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor, np.ndarray[Any, Any]]:
    """The task: fit rows [n, 64], held-out rows, weights [64, 10], intercepts [10], labels of the held-out rows.

    Raises:
        BadInput: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import train_test_split
    except ImportError as missing:
        raise BadInput(
            "the digits task needs scikit-learn, which is not installed: pip install scikit-learn"
        ) from missing
    images, labels = load_digits(return_X_y=True)
    fit_on, held_out, y, y_held_out = train_test_split(images, labels, test_size=0.3, random_state=0, stratify=labels)
    model = LogisticRegression(C=0.01, max_iter=3000).fit(fit_on, y)
    tensors = (torch.tensor(t, dtype=torch.float32) for t in (fit_on, held_out, model.coef_.T, model.intercept_))
    a, b, weight, intercept = tensors
    return a, b, weight, intercept, y_held_out


def published_scan(table: Tensor, codes: Tensor) -> Tensor:
    """MADDNESS' own 8-bit tables and averaging sums: table [C, 16, out] float64, codes [n, C] -> [n, out].

    One offset per codebook and one scale for all; groups of 16 entries are averaged pair by pair, each pair rounded up,
    which adds log2(16) / 4 per entry on average; that is taken off again (arXiv 2106.10860, section 4.4).
    """
    codebooks = len(table)
    group = math.gcd(codebooks, AVERAGED)
    low = table.amin((1, 2), keepdim=True)
    scale = 255 / float((table - low).max())
    entries = ((table - low) * scale).round().to(torch.int64)
    means = entries[torch.arange(codebooks), codes]  # [n, C, out]
    while means.shape[1] > codebooks // group:
        means = (means[:, 0::2] + means[:, 1::2] + 1) >> 1
    total = group * means.sum(1).double() - codebooks * math.log2(group) / 4
    return total / scale + low.sum()


def _exact_scan(table: Tensor, codes: Tensor) -> Tensor:
    return table[torch.arange(len(table)), codes].sum(1)


def _product_of_centroids(
    x: Tensor, weight: Tensor, codebooks: int, k: int
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Plain product quantisation: tables [C, k, out] of centroid times weight, and the encoder."""
    centroids = learn_centroids(x.float(), codebooks, k=k).double()
    spec, starts = Spec(codebooks, "kmeans"), bounds(x.shape[1], codebooks)
    parts = [centroids[:, b:e] @ weight[b:e] for b, e in pairwise(starts)]
    return torch.stack(parts), lambda rows: encode(spec, {"centroids": centroids}, rows)


def accuracy(device: str = "cpu", threads: int = 1) -> list[Row]:
    """NMSE and accuracy on scikit-learn's digits, 30 % held out, weights of a logistic regression; baseline: MADDNESS.

    `ratio` is the NMSE over that of MADDNESS with float tables at the same number of codebooks, as measured here.
    """
    torch.set_num_threads(threads)
    a, held_out, weight, intercept, labels = digits()
    b = weight.double()
    exact = held_out.double() @ b

    def judge(y: Tensor) -> tuple[float, float]:
        error = float((y - exact).square().mean() / exact.var(correction=0))
        return error, float(((y + intercept).argmax(1).numpy() == labels).mean())

    rows: list[Row] = []
    for c in (4, 8, 16, 32):
        spec = Spec(c)
        params = learn_encoder(spec, a)
        table = (prototypes(encode(spec, params, a), a.double(), 1.0) @ b).view(c, BUCKETS, -1)
        codes = encode(spec, params, held_out)
        results = {
            "MADDNESS, float tables": judge(_exact_scan(table, codes)),
            "MADDNESS, 8-bit, averaged": judge(published_scan(table, codes)),
        }
        for label, codebook in (
            ("tree, 8-bit, exact sums", Codebook.fit(a, weight, c)),
            ("k-means 16, 8-bit, ridge", Codebook.fit(a, weight, c, encoder="kmeans")),
            ("refined tree, 8-bit", Codebook.fit(a, weight, c, refine=True)),
        ):
            results[label] = judge(codebook.matmul(held_out).double())
        for k in (16, 256):
            plain, encoder = _product_of_centroids(a, b, c, k)
            results[f"PQ k-means {k}, float"] = judge(_exact_scan(plain, encoder(held_out)))
            if k == 16:
                results["Bolt (k-means 16, 8-bit)"] = judge(_bolt(plain, encoder(held_out)))
        base = results["MADDNESS, float tables"][0]
        rows += [
            {"case": f"digits C={c}", "method": m, "baseline": "MADDNESS, float tables", "ratio": e / base, "nmse": e}
            | {"accuracy": right}
            for m, (e, right) in results.items()
        ]
    return rows


def _bolt(table: Tensor, codes: Tensor) -> Tensor:
    """Bolt's tables (arXiv 1706.10283): 8 bits, one offset per codebook, one scale, exact sums."""
    low = table.amin((1, 2), keepdim=True)
    scale = 255 / float((table - low).max())
    return _exact_scan(((table - low) * scale).round(), codes) / scale + low.sum()


def _medians(calls: Mapping[str, Callable[[], object]], rounds: int = 15) -> dict[str, float]:
    """Seconds of each call, in turn, so that drifts of the clock meet all alike."""
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


def cpu(device: str = "cpu", threads: int = 1) -> list[Row]:
    """Speed on row-major and column-major inputs against torch's linear and numpy's product, alternating in one run.

    `ratio` is the baseline's median time over ours. Each result is first compared with the reference.

    Raises:
        BadInput: the compiled kernels are not installed, or a result differs from the reference.
    """
    try:
        from basis_kernels.pq import _cpu
    except ImportError as missing:
        raise BadInput(
            "the compiled CPU kernels are not installed; a C++ compiler at install time builds them"
        ) from missing
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    isa = _cpu.instruction_sets()[-1]
    rows: list[Row] = []
    for n, d, m, c in SHAPES:
        params = random_operator(d, m, c, generator)
        trees = _cpu.Trees(params["split_columns"], params["thresholds"])
        tables = _cpu.Tables(params["table"], params["scale"], params["offset"])
        x, weight = torch.randn(n, d, generator=generator), torch.randn(m, d, generator=generator)
        columns = x.T.contiguous().T
        y, codes = torch.empty(n, m), torch.empty(n, c, dtype=torch.uint8)
        by_codebook = torch.empty(c, n, dtype=torch.uint8).T  # [n, C], a codebook's codes side by side
        expected = reference(Spec(c), params, x[:256])
        for rows_in in (x, columns):
            _cpu.linear(trees, tables, rows_in, y, isa, threads)
            gap = relative_gap(y[:256], expected)
            if gap > 1e-5:
                raise BadInput(
                    f"the kernel cpu-{isa} differs from the reference by {gap:.1e} at {n} x {d} x {m}, C = {c}"
                )
        a, b = x.numpy(), weight.numpy().T
        times = _medians(
            {
                "torch": partial(torch.nn.functional.linear, x, weight),
                "numpy": partial(np.matmul, a, b),
                "row-major": partial(_cpu.linear, trees, tables, x, y, isa, threads),
                "column-major": partial(_cpu.linear, trees, tables, columns, y, isa, threads),
                "encode, row-major": partial(_cpu.encode, trees, x, codes, isa, threads),
                "encode, column-major": partial(_cpu.encode, trees, columns, by_codebook, isa, threads),
                "scan": partial(_cpu.scan, tables, codes, y, isa, threads),
                "touch each cache line": partial(_touch, x),
            }
        )
        base = min(times["torch"], times["numpy"])
        for what, seconds in times.items():
            row: dict[str, Any] = {"case": f"{n} x {d} x {m}, C={c}: {what}", "baseline": "best of torch and numpy"}
            row |= {"ratio": base / seconds, "milliseconds": 1e3 * seconds}
            if what == "scan":
                row["per_second"] = n * m / seconds
            elif what.startswith("encode"):
                row["per_second"] = n * c / seconds
            rows.append(row)
    return rows


def _touch(x: Tensor) -> Tensor:
    return x[:, ::16].sum()


SHAPES = (
    (10016, 512, 10, 16),
    (10016, 512, 100, 16),
    (10016, 512, 100, 64),
    (16384, 512, 12, 16),
    (100000, 64, 12, 16),
    (1, 768, 3072, 48),
    (16, 768, 3072, 48),
    (256, 768, 3072, 48),
    (4096, 768, 3072, 48),
)
"""Rows, inputs, outputs, codebooks."""


def random_operator(d: int, m: int, codebooks: int, generator: torch.Generator) -> Params:
    """Trees on contiguous groups of columns, thresholds and full-range tables at random: for speed, not for quality."""
    starts = bounds(d, codebooks)
    columns = [torch.randint(b, e, (4,), generator=generator) for b, e in pairwise(starts)]
    return {
        "split_columns": torch.stack(columns).int(),
        "thresholds": torch.randn(codebooks, BUCKETS - 1, generator=generator),
        "table": torch.randint(256, (codebooks, BUCKETS, m), generator=generator).to(torch.uint8),
        "scale": torch.rand(m, generator=generator) + 0.5,
        "offset": -100.0 * codebooks * torch.rand(m, generator=generator),
    }


PARTS: dict[str, Callable[..., list[Row]]] = {"accuracy": accuracy, "cpu": cpu, "gpu": pq_gpu.gpu}
DEVICES = {"accuracy": "cpu", "cpu": "cpu", "gpu": "cuda"}
