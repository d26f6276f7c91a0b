"""Seconds and peak memory of fitting wide layers, each in a separate process.

Weights are Gaussian; inputs have covariance eigenvalues i^(-2 decay) along axes that mix all features. A normal matrix
of a 4096 -> 11008 layer at rank 24 (side r in / 4 = 24,576) is formed whole; those of wider inputs are not.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from basis_search.bench.stored_results import StoredResults
from basis_search.evaluation.timing import torch_threads
from basis_search.families import stl
from basis_search.families.protocol import relative_gap
from basis_search.families.stl.bases import bases
from basis_search.families.stl.fit import encode_weight
from basis_search.families.stl.reference import reference
from basis_search.layers.layer import Layer

Rows = list[dict[str, Any]]

SHAPES = ((4096, 11008), (5504, 2048), (11008, 4096))
MOST_GB = (8, 16, 16)
SPEC = stl.Spec(4, 24)
DECAY = 0.25
SAMPLES, HELD_OUT = 2, 512
"""Samples per input feature; held-out rows of the error."""
RESULTS = Path("runs") / "stl-fit.json"


def wide_layers(device: str, threads: int) -> Rows:
    """One row per layer, each fitted in a new process; errors are relative, squared, on held-out rows."""
    results = StoredResults(RESULTS)
    rows: Rows = []
    for (k, m), most in zip(SHAPES, MOST_GB, strict=True):
        found = results.of(f"{k} -> {m}, threads {threads}", partial(_apart, k, m, threads))
        rows.append({"case": f"{k} -> {m}", **found, "most GB": most})
    return rows


def _apart(k: int, m: int, threads: int) -> dict[str, Any]:
    """`fitted` in a new process, since peak memory is per process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(fitted, k, m, threads).result()


def fitted(k: int, m: int, threads: int) -> dict[str, Any]:
    """Fits SPEC to a layer k -> m in this process."""
    draw = torch.Generator().manual_seed(k)
    weight = torch.randn(m, k, generator=draw) / k**0.5
    x = correlated(SAMPLES * k + HELD_OUT, k, DECAY, draw)
    layer = Layer("wide", weight, None, x[:-HELD_OUT], x[-HELD_OUT:], HELD_OUT)
    before = peak()
    with torch_threads(threads):
        began, busy = time.perf_counter(), time.process_time()
        params = stl.fit(SPEC, layer)
        seconds, busy = time.perf_counter() - began, time.process_time() - busy
        after = peak()
        basis = bases(SPEC)
        unfitted = {"encode": basis.encode.float(), "decode": basis.decode.float(), "out_features": torch.tensor(m)}
        unfitted["weight"] = encode_weight(basis.encode_weight.float(), weight, SPEC.sides)
        target = layer.held_out @ weight.T
        errors = {
            name: relative_gap(reference(SPEC, some, layer.held_out), target) ** 2
            for name, some in (("error", params), ("not fitted", unfitted))
        }
    return {
        "rank": SPEC.rank,
        "side": SPEC.rank * k // SPEC.sides[1],
        "samples": len(layer.inputs),
        "seconds": seconds,
        "CPU seconds": busy,
        "peak GB": after,
        "before GB": before,
        **errors,
    }


def correlated(rows: int, width: int, decay: float, draw: torch.Generator) -> Tensor:
    """Gaussian rows with variances i^(-2 decay) along axes that mix all features, [rows, width] float32.

    Mixed twice by random signs, a cosine transform and a permutation: a random rotation would take longer than the fit.
    """
    from scipy.fft import dct

    x = torch.randn(rows, width, generator=draw) * torch.arange(1, width + 1) ** -decay
    for _ in range(2):
        signs = torch.randint(0, 2, (width,), generator=draw) * 2.0 - 1
        for first in range(0, rows, 1024):  # in place: the measured peak is to be the fit's
            part = x[first : first + 1024] * signs
            turned = torch.from_numpy(dct(part.numpy(), norm="ortho", overwrite_x=True))
            x[first : first + 1024] = turned[:, torch.randperm(width, generator=torch.Generator().manual_seed(width))]
    return x


def peak() -> float:
    """Peak resident memory of this process, GB (2^30 bytes)."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**30 if sys.platform == "darwin" else 2**20)  # bytes there, kilobytes elsewhere
