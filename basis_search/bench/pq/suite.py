"""Benchmarks of product quantisation: accuracy of encoders on digits and synthetic rows, and the list of parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from basis_search.bench.pq import cpu, gpu, whole_layers
from basis_search.bench.search.evaluation_table import digits_layers
from basis_search.errors import BadInput
from basis_search.families.pq.codebook import Codebook
from basis_search.families.pq.fit import learn_encoder, prototypes
from basis_search.families.pq.guarantee import guarantee
from basis_search.families.pq.kmeans import learn_centroids
from basis_search.families.pq.reference import encode
from basis_search.families.pq.rotation import learn_rotation
from basis_search.families.pq.spec import BUCKETS, Spec, bounds

Row = Mapping[str, Any]

FOLDER = Path("runs/pq")
"""Folder of the digits transformer."""
LAYERS = ("blocks.0.qkv", "blocks.1.proj", "blocks.1.fc1", "blocks.2.fc2")
"""One layer of each kind of the digits transformer."""
AVERAGED = 16
"""Entries averaged by one tree of (a + b + 1) >> 1 in the published scan."""


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor, np.ndarray[Any, Any]]:
    """Rows to fit [n, 64], held-out rows, weights [64, 10], intercepts [10], labels of the held-out rows.

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
    """MADDNESS' 8-bit tables and averaging sums: table [C, 16, out] float64, codes [n, C] -> [n, out].

    One offset per codebook and one scale for all; groups of 16 entries are averaged pair by pair, each pair rounded up,
    which adds log2(16) / 4 per entry on average; this bias is subtracted (arXiv 2106.10860, section 4.4).
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

    ratio = NMSE over that of MADDNESS with float tables and as many codebooks, measured in the same run.
    """
    torch.set_num_threads(threads)
    a, held_out, weight, intercept, labels = digits()
    b = weight.double()
    exact = held_out.double() @ b

    def scores(y: Tensor) -> tuple[float, float]:
        error = float((y - exact).square().mean() / exact.var(correction=0))
        return error, float(((y + intercept).argmax(1).numpy() == labels).mean())

    rows: list[Row] = []
    for c in (4, 8, 16, 32):
        spec = Spec(c)
        params = learn_encoder(spec, a)
        table = (prototypes(encode(spec, params, a), a.double(), 1.0) @ b).view(c, BUCKETS, -1)
        codes = encode(spec, params, held_out)
        results = {
            "MADDNESS, float tables": scores(_exact_scan(table, codes)),
            "MADDNESS, 8-bit, averaged": scores(published_scan(table, codes)),
        }
        for label, codebook in (
            ("tree, 8-bit, exact sums", Codebook.fit(a, weight, c)),
            ("k-means 16, 8-bit, ridge", Codebook.fit(a, weight, c, encoder="kmeans")),
            ("tree, 8-bit, averaged", Codebook.fit(a, weight, c, sums="averaged")),
            ("refined tree, 8-bit", Codebook.fit(a, weight, c, refine=True)),
            ("tree after OPQ's rotation, 8-bit", Codebook.fit(a, weight, c, rotate=True)),
            ("tree on two of four cache lines, 8-bit", Codebook.fit(a, weight, c, lines=2)),
        ):
            results[label] = scores(codebook.matmul(held_out).double())
            if label == "tree, 8-bit, exact sums":
                bound = guarantee(codebook.matmul(a), a, weight, c)
        turned = learn_rotation(a, c)
        plain, encoder = _product_of_centroids(a.double() @ turned, turned.T @ b, c, 16)
        results["OPQ k-means 16, float"] = scores(_exact_scan(plain, encoder(held_out.double() @ turned)))
        for k in (16, 256):
            plain, encoder = _product_of_centroids(a, b, c, k)
            results[f"PQ k-means {k}, float"] = scores(_exact_scan(plain, encoder(held_out)))
            if k == 16:
                results["Bolt (k-means 16, 8-bit)"] = scores(_bolt(plain, encoder(held_out)))
        base = results["MADDNESS, float tables"][0]
        rows += [
            {"case": f"digits C={c}", "method": m, "baseline": "MADDNESS, float tables", "ratio": e / base, "nmse": e}
            | {"accuracy": right}
            for m, (e, right) in results.items()
        ]
        rows.append(
            {
                "case": f"digits C={c}",
                "method": "Theorem 4.1, with probability 0.95",
                "mean absolute error": bound.measured,
            }
            | {"excess at most": bound.excess}
        )
    return rows


def _bolt(table: Tensor, codes: Tensor) -> Tensor:
    """Bolt's tables (arXiv 1706.10283): 8 bits, one offset per codebook, one scale, exact sums."""
    low = table.amin((1, 2), keepdim=True)
    scale = 255 / float((table - low).max())
    return _exact_scan(((table - low) * scale).round(), codes) / scale + low.sum()


def low_rank(n: int, draw: torch.Generator) -> Tensor:
    """[n, 64] of rank 8 with noise of variance 0.01."""
    basis = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    return torch.randn(n, 8, generator=draw) @ basis + 0.1 * torch.randn(n, 64, generator=draw)


def clustered(n: int, draw: torch.Generator) -> Tensor:
    """[n, 64]: noise around 50 centres."""
    centres = torch.randn(50, 64, generator=torch.Generator().manual_seed(2))
    return centres[torch.randint(50, (n,), generator=draw)] + 0.3 * torch.randn(n, 64, generator=draw)


def smooth(n: int, draw: torch.Generator) -> Tensor:
    """[n, 64]: moving averages of random walks."""
    steps = torch.randn(n, 72, generator=draw).cumsum(1)
    return steps.unfold(1, 9, 1).mean(2) / 4


def data(device: str = "cpu", threads: int = 1) -> list[Row]:
    """NMSE on low-rank, clustered and smooth rows, and on layers of the digits transformer with their real inputs.

    Synthetic rows have 64 columns and 16 random outputs: 2000 rows to fit, 2000 held out. Layers have inputs / 8 and
    inputs / 4 codebooks. ratio = NMSE over that of MADDNESS without ridge prototypes (MADDNESS-PQ).

    Raises:
        BadInput: the digits transformer does not exist and cannot be trained.
    """
    torch.set_num_threads(threads)
    rows: list[Row] = []
    for make_rows in (low_rank, clustered, smooth):
        draw = torch.Generator().manual_seed(0)
        a, held_out, b = make_rows(2000, draw), make_rows(2000, draw), torch.randn(64, 16, generator=draw)
        for c in (8, 16):
            rows += _encoders(f"{make_rows.__name__} C={c}", a, held_out, b, c)
    for layer in digits_layers(FOLDER, LAYERS):
        for c in (layer.in_features // 8, layer.in_features // 4):
            case = f"{layer.name}, {layer.in_features} -> {layer.out_features}, C={c}"
            rows += _encoders(case, layer.inputs, layer.held_out, layer.weight.T, c)
    return rows


def _encoders(case: str, a: Tensor, held_out: Tensor, b: Tensor, codebooks: int) -> list[Row]:
    """NMSE of each encoder on held_out @ b, b [in, out], fitted to rows a."""
    exact = held_out.double() @ b.double()
    spec = Spec(codebooks)
    encoder = learn_encoder(spec, a)
    codes, seen = encode(spec, encoder, held_out), encode(spec, encoder, a)
    products = {
        "MADDNESS-PQ, float tables": _exact_scan(bucket_means(seen, a) @ b.double(), codes),
        "MADDNESS": Codebook.fit(a, b, codebooks).matmul(held_out),
        "k-means 16, ridge": Codebook.fit(a, b, codebooks, encoder="kmeans").matmul(held_out),
        "refined tree": Codebook.fit(a, b, codebooks, refine=True).matmul(held_out),
    }
    errors = {m: float((y - exact).square().mean() / exact.var(correction=0)) for m, y in products.items()}
    base = errors["MADDNESS-PQ, float tables"]
    return [
        {"case": case, "method": m, "baseline": "MADDNESS-PQ", "ratio": e / base, "nmse": e} for m, e in errors.items()
    ]


def bucket_means(codes: Tensor, rows: Tensor) -> Tensor:
    """Prototypes [C, 16, in] of MADDNESS-PQ: the mean of a bucket's rows in its group of columns, zero elsewhere."""
    starts = bounds(rows.shape[1], codes.shape[1])
    means = torch.zeros(codes.shape[1], BUCKETS, rows.shape[1], dtype=torch.float64)
    for c, (begin, end) in enumerate(pairwise(starts)):
        sums = torch.zeros(BUCKETS, end - begin, dtype=torch.float64)
        sums.index_add_(0, codes[:, c], rows[:, begin:end].double())
        means[c, :, begin:end] = sums / torch.bincount(codes[:, c], minlength=BUCKETS).clamp(min=1)[:, None]
    return means


PARTS: dict[str, Callable[..., Iterable[Row]]] = {
    "accuracy": accuracy,
    "data": data,
    "cpu": cpu.cpu,
    "codes": cpu.codes,
    "sums": cpu.sums,
    "layer": whole_layers.layer,
    "planted": whole_layers.planted,
    "gpu": gpu.gpu,
}
DEVICES = {name: "cuda" if name == "gpu" else "cpu" for name in PARTS}
