"""Whole PQ layers against nn.Linear by batch, and classifiers of 10 and 100 classes by number of codebooks C."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from basis_search.bench.pq.cpu import medians, random_operator, repeated
from basis_search.families.pq import Codebook, Spec
from basis_search.replacement.structured_linear import StructuredLinear

Rows = list[Mapping[str, Any]]

WIDE, HIDDEN = 768, 3072
BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
CODEBOOKS = (48, 192)
ROWS, FEATURES = 10000, 512


def layer(device: str = "cpu", threads: int = 1) -> Rows:
    """768 -> 3072 in float32, called as a module; ratio = nn.Linear's time over ours, above 1 is faster."""
    torch.set_num_threads(threads)
    draw = torch.Generator().manual_seed(0)
    rows: Rows = []
    dense = torch.nn.Linear(WIDE, HIDDEN)
    for c in CODEBOOKS:
        params = random_operator(WIDE, HIDDEN, c, draw)
        fast = StructuredLinear(WIDE, HIDDEN, "pq", Spec(c), params)
        for batch in BATCHES:
            x = torch.randn(batch, WIDE, generator=draw)
            with torch.inference_mode():
                times = medians({"dense": partial(dense, x), "ours": partial(fast, x)}, 9 if batch > 256 else 41)
            rows.append(
                {
                    "case": f"batch {batch}, C={c}", "baseline": "nn.Linear", "ratio": times["dense"] / times["ours"],
                    "dense ms": 1e3 * times["dense"], "ms": 1e3 * times["ours"], "kernel": fast.kernel,
                }
            )  # fmt: skip
    return rows


def features(classes: int, rows: int, draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Synthetic features like VGG16's, [rows, 512]: a cluster per class in 32 dimensions, noise, ReLU.

    Also the weights [512, classes] of the nearest-class-mean classifier.
    """
    means = 1.2 * torch.randn(classes, 32, generator=torch.Generator().manual_seed(classes))
    basis = torch.randn(32, FEATURES, generator=torch.Generator().manual_seed(1)) / 32**0.5
    label = torch.randint(classes, (rows,), generator=draw)
    hidden = means[label] + 0.8 * torch.randn(rows, 32, generator=draw)
    x = torch.relu(hidden @ basis + 0.15 * torch.randn(rows, FEATURES, generator=draw))
    centres = torch.relu(means @ basis)
    return x, (centres - centres.mean(0)).T.contiguous()


def planted(device: str = "cpu", threads: int = 1) -> Rows:
    """10000 x 512 x 10 and 100: speed and agreement with the exact arg-max by C; fitted to as many other rows."""
    torch.set_num_threads(threads)
    rows: Rows = []
    for classes in (10, 100):
        draw = torch.Generator().manual_seed(0)
        (a, b), (x, _) = features(classes, ROWS, draw), features(classes, ROWS, draw)
        exact = x @ b
        columns = x.T.contiguous().T
        peers = {"torch": partial(torch.mm, x, b), "numpy": partial(np.matmul, x.numpy(), b.numpy())}
        base = min(repeated(peers).values())
        for c in (2, 4, 8, 16, 32, 64):
            book = Codebook.fit(a, b, c)
            y = book.matmul(x)
            times = repeated({"row": partial(book.matmul, x), "column": partial(book.matmul, columns)})
            rows.append(
                {
                    "case": f"{ROWS} x {FEATURES} x {classes}, C={c}", "baseline": "best of torch and numpy",
                    "ratio": base / times["row"], "column-major ratio": base / times["column"],
                    "same arg-max": float((y.argmax(1) == exact.argmax(1)).double().mean()),
                    "nmse": float((y - exact).square().mean() / exact.var(correction=0)),
                }
            )  # fmt: skip
    return rows
