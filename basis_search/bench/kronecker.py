"""Kronecker-sparse chains measured: factorisation against known errors, one factor's kernels against batched GEMM."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from basis_search.bench import kronecker_gpu
from basis_search.families import kronecker
from basis_search.families.kronecker import KroneckerChain
from basis_search.family import relative_gap, tolerance
from basis_search.layer import LayerShape
from basis_search.timing import measure, torch_threads

Rows = list[dict[str, Any]]
PATTERNS = (
    (1, 64, 64, 16), (16, 64, 64, 1), (4, 64, 64, 4), (1, 192, 48, 16), (2, 128, 32, 64), (32, 48, 192, 2),
    (1, 48, 48, 4), (2, 64, 256, 2), (4, 256, 64, 1), (1, 128, 128, 8), (16, 48, 48, 4), (4, 48, 192, 16),
)  # fmt: skip
BATCHES = (64, 256, 1024)
MONARCH_64, MONARCH_256 = "(1,8,8,8)*(8,8,8,1)", "(1,16,16,16)*(16,16,16,1)"


def fit(device: str, threads: int) -> Rows:
    """factorize() on Gaussian matrices (numpy default_rng(0)): error before and after the polish, certificate, time."""
    cases = (
        ("Monarch", 64, MONARCH_64, 0.7778414161),
        ("Monarch", 256, MONARCH_256, 0.8863653873),
        ("dyadic", 64, None, 0.8934101),
        ("dyadic", 128, None, None),
        ("dyadic", 1024, None, None),
        ("Monarch", 1024, "(1,32,32,32)*(32,32,32,1)", None),
    )
    rows = []
    with torch_threads(threads):
        for name, side, text, known in cases:
            matrix = torch.from_numpy(np.random.default_rng(0).standard_normal((side, side)))
            chain = KroneckerChain.dyadic(side) if text is None else KroneckerChain.parse(text)
            start = time.perf_counter()
            plain = kronecker.factorize(matrix, chain, polish=False)
            seconds = time.perf_counter() - start
            polished = kronecker.factorize(matrix, chain, polish=True) if side <= 256 else None
            rows.append(
                {
                    "case": f"{name} Gaussian {side}",
                    "error": plain.error,
                    "published": known,
                    "polished": None if polished is None else polished.error,
                    "lower bound": plain.lower_bound,
                    "seconds": seconds,
                }
            )
    return rows


def einsum(x: Tensor, w: Tensor) -> Tensor:
    """y[n, (i, j, l)] = sum_k w[i, j, k, l] x[n, (i, k, l)]."""
    a, _, c, d = w.shape
    return torch.einsum("nikl,ijkl->nijl", x.view(-1, a, c, d), w).flatten(1)


def bmm(x: Tensor, blocks: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """Permute, batched GEMM over the a d blocks, permute back; blocks are [a d, c, b]."""
    a, b, c, d = shape
    rows = x.view(-1, a, c, d).permute(1, 3, 0, 2).reshape(a * d, -1, c)
    return torch.bmm(rows, blocks).view(a, d, -1, b).permute(2, 0, 3, 1).reshape(len(x), a * b * d)


def cpu(device: str, threads: int) -> Rows:
    """One factor, fp32, batch-size-first: our fastest compiled kernel over the best of bmm and einsum; gate first."""
    rows: Rows = []
    generator = torch.Generator().manual_seed(0)
    for shape in PATTERNS:
        a, b, c, d = shape
        spec = kronecker.Spec(chain=f"({a},{b},{c},{d})")
        w = torch.randn(shape, generator=generator) / c**0.5
        blocks = w.permute(0, 3, 2, 1).reshape(a * d, c, b).contiguous()
        for batch in BATCHES:
            x = torch.randn(batch, a * c * d, generator=generator)
            layer = LayerShape(a * c * d, a * b * d, batch)
            reference = kronecker.KERNELS[0]
            expected = reference.run(spec, reference.pack(spec, {"factor_0": w}), x.double())
            calls: dict[str, Callable[[], Tensor]] = {
                "bmm": lambda x=x, m=blocks, s=shape: bmm(x, m, s),  # type: ignore[misc]
                "einsum": lambda x=x, w=w: einsum(x, w),  # type: ignore[misc]
            }
            for kernel in kronecker.KERNELS[1:]:
                if kernel.name.startswith("cpu-") and kernel.name != "cpu-scalar" and not kernel.refuses(spec, layer):
                    packed = kernel.pack(spec, {"factor_0": w})
                    calls[kernel.name] = lambda k=kernel, p=packed, x=x, s=spec: k.run(s, p, x)  # type: ignore[misc]
            with torch_threads(threads), torch.inference_mode():
                gaps = {name: relative_gap(call(), expected) for name, call in calls.items()}
            limit = tolerance(torch.float32, c)
            if wrong := [name for name, gap in gaps.items() if not gap <= limit]:
                rows.append({"case": f"{spec.chain}, batch {batch}", "failure": f"{wrong} beyond {limit:.1e}"})
                continue
            if a * b * d * a * c * d <= 2**24:
                dense = torch.zeros(a * b * d, a * c * d)
                calls["dense"] = lambda x=x, m=dense: torch.nn.functional.linear(x, m)  # type: ignore[misc]
            with torch.inference_mode():
                timings = measure(calls, "bmm", threads=threads, rounds=15)
            ours = min((n for n in calls if n.startswith("cpu-")), key=lambda n: timings[n].ratio, default="einsum")
            best = min(("bmm", "einsum"), key=lambda n: timings[n].ratio)
            rows.append(
                {
                    "case": f"{spec.chain}, batch {batch}",
                    "kernel": ours,
                    "baseline": best,
                    "ratio": timings[best].ratio / timings[ours].ratio,
                    "spread": timings[ours].ratio_spread,
                    "time/dense": timings[ours].ratio / timings["dense"].ratio if "dense" in timings else None,
                    "1/(ad)": 1 / (a * d),
                    "gap": gaps[ours],
                }
            )
    speedups = [row["ratio"] for row in rows if "ratio" in row]
    if speedups:
        rows.append({"case": f"median of {len(speedups)}", "ratio": statistics.median(speedups)})
    return rows


PARTS: dict[str, Callable[..., Rows]] = {"fit": fit, "cpu": cpu, **kronecker_gpu.PARTS}
DEVICES = {"cpu": "cpu", **dict.fromkeys(kronecker_gpu.PARTS, "cuda")}
