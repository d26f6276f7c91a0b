"""Kronecker-sparse factors on a GPU: our kernels against library products, arXiv 2405.15013's grid, batch 25,088.

Per pattern, dtype (a part each) and layout: ratio = the best baseline's time over ours; energy_ratio, of joules per
call.
"""

from __future__ import annotations

import itertools
import math
import statistics
import warnings
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from basis_search.bench.kronecker.library_products import Call, batched_products
from basis_search.evaluation.timing import measure
from basis_search.families.kronecker import blocks, kernels_triton
from basis_search.families.protocol import relative_gap, tolerance

Shape = tuple[int, int, int, int]
BATCH = 25_088  # 128 images of 196 tokens
OUTER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
INNER = (48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
SIDE = 8192
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGEST_BSR_BLOCK = 128
"""Of torch's block-sparse product: blocks of 256 exceed an H200's shared memory, after 20 s of compiling."""
BASELINES = ("dense", "bmm", "einsum", "bsr")


def grid() -> list[Shape]:
    """Patterns with b = c, b = 4c or c = 4b and sides up to 8192, thinned to one in 21."""
    every = [
        (a, b, c, d)
        for a, d in itertools.product(OUTER, repeat=2)
        for b, c in itertools.product(INNER, repeat=2)
        if (b == c or b == 4 * c or c == 4 * b) and max(a * b * d, a * c * d) <= SIDE and a * d > 1
    ]
    return every[::21]


def baselines(w: Tensor, x: Tensor, last: bool) -> Iterator[tuple[str, Call]]:
    """Each library product on a factor stored for it; x is in the timed layout."""
    a, b, c, d = w.shape
    matrix = blocks.dense(w)
    yield "dense", lambda: matrix @ x if last else torch.nn.functional.linear(x, matrix)
    stacked = w.permute(0, 3, 1, 2).reshape(a * d, b, c).contiguous()  # [ad, b, c]
    if last:
        yield (
            "bmm",
            lambda: (
                torch.bmm(stacked, x.view(a, c, d, -1).transpose(1, 2).reshape(a * d, c, -1))
                .view(a, d, b, -1)
                .transpose(1, 2)
                .reshape(a * b * d, -1)
            ),
        )
        yield "einsum", lambda: torch.einsum("ijkl,ikln->ijln", w, x.view(a, c, d, -1)).reshape(a * b * d, -1)
    else:
        yield from batched_products(w, x)
    # Rows and columns in the order of the blocks, (i, l, j) and (i, l, k): block diagonal.
    tile = math.gcd(b, c)
    if tile > LARGEST_BSR_BLOCK:
        yield "bsr", partial(_refuse, f"torch's kernel needs more shared memory than a GPU has for blocks of {tile}")
        return
    ordered = block_diagonal(stacked, tile)
    rows = torch.arange(a * b * d, device=x.device).view(a, b, d).transpose(1, 2).flatten()
    columns = torch.arange(a * c * d, device=x.device).view(a, c, d).transpose(1, 2).flatten()
    back = torch.argsort(rows)
    if last:
        yield "bsr", lambda: (ordered @ x[columns])[back]
    else:
        yield "bsr", lambda: (ordered @ x[:, columns].T)[back].T.contiguous()


def _refuse(reason: str) -> Tensor:
    raise NotImplementedError(reason)


def block_diagonal(blocks: Tensor, tile: int) -> Tensor:
    """[n, b, c] as a block-sparse matrix [n b, n c] of tile x tile blocks, without the dense matrix."""
    n, b, c = blocks.shape
    high, wide = b // tile, c // tile
    values = blocks.view(n, high, tile, wide, tile).transpose(2, 3).reshape(-1, tile, tile)
    starts = torch.arange(0, n * high * wide + 1, wide, device=blocks.device)
    columns = torch.arange(n * wide, device=blocks.device).view(n, 1, wide).expand(n, high, wide).flatten()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns that BSR is in beta
        return torch.sparse_bsr_tensor(starts, columns, values, (n * b, n * c))


def ours(w: Tensor, x: Tensor, last: bool) -> Iterator[tuple[str, Call]]:
    """Our kernels; in tf32 where torch's products may use it, else exact."""
    packed = [kernels_triton.packed_factor(w)]
    exact = ("tf32",) if torch.backends.cuda.matmul.allow_tf32 else ("ieee", "tf32x3")
    for precision in exact if w.dtype == torch.float32 else ("ieee",):
        name = "triton" if precision == "ieee" else f"triton-{precision}"
        yield name, partial(kernels_triton.chain, x, packed, last=last, precision=precision)


def kernel_failures() -> tuple[type[Exception], ...]:
    """What Triton raises for a kernel that the GPU cannot run, torch's own kernels among them: no RuntimeError."""
    if find_spec("triton") is None:
        return ()
    from basis_kernels.launch.gpu import FAILURES

    return FAILURES


def one(shape: Shape, dtype: torch.dtype, last: bool, device: torch.device, batch: int) -> dict[str, Any]:
    """One row: every product checked against float64, then timed, alternating in one run."""
    a, b, c, d = shape
    draw = torch.Generator(device).manual_seed(0)
    w = (torch.randn(shape, generator=draw, device=device) / c**0.5).to(dtype)
    x = torch.randn((a * c * d, batch) if last else (batch, a * c * d), generator=draw, device=device).to(dtype)
    row = {
        "case": f"({a},{b},{c},{d})", "dtype": str(dtype).removeprefix("torch."), "layout": "bsl" if last else "bsf",
    }  # fmt: skip
    some = x[:, :64] if last else x[:64]  # the checked rows; all of them in float64 would not fit
    expected = blocks.apply_last(w.double(), some.double()) if last else blocks.apply(w.double(), some.double())
    failures: tuple[type[Exception], ...] = (RuntimeError, NotImplementedError, *kernel_failures())
    calls: dict[str, Call] = {}
    gaps: dict[str, float] = {}
    for name, call in itertools.chain(ours(w, x, last), baselines(w, x, last)):
        try:
            y = call()
        except failures as problem:  # no BSR in this dtype, no memory, no block that fits
            row[name] = str(problem).splitlines()[0]
            continue
        gaps[name] = relative_gap(y[:, :64] if last else y[:64], expected)
        calls[name] = call
    if not any(name.startswith("triton") for name in calls):
        return {**row, "failure": "none of our kernels runs"}
    limit = tolerance(dtype, c)
    wrong = [name for name in gaps if name.startswith("triton") and not gaps[name] <= limit]
    if wrong:
        return {**row, "failure": f"{wrong} beyond {limit:.1e}"}
    timings = measure(calls, "dense", device=device, rounds=7, seconds=0.01)
    mine = min((n for n in calls if n.startswith("triton")), key=lambda n: timings[n].ratio)
    best = min((n for n in calls if n in BASELINES), key=lambda n: timings[n].ratio)
    energy, other = timings[mine].joules, timings[best].joules
    return {
        **row, "kernel": mine, "baseline": best, "ratio": timings[best].ratio / timings[mine].ratio,
        "spread": timings[mine].ratio_spread, "microseconds": 1e6 * timings[mine].seconds,
        "time/dense": timings[mine].ratio, "1/(ad)": 1 / (a * d), "joules": energy,
        "energy_ratio": other / energy if energy and other else None, "gap": gaps[mine],
    }  # fmt: skip


def gpu(
    dtype: torch.dtype, device: str, threads: int, batch: int = BATCH, quick: bool = False
) -> Iterator[dict[str, Any]]:
    """The paper's grid in one dtype, batch-size-first and -last, each with its median and share of wins.

    The quick form takes a third of the patterns.
    """
    for last in (False, True):
        found = []
        for shape in grid()[:: 3 if quick else 1]:
            with torch.inference_mode():
                found.append(one(shape, dtype, last, torch.device(device), batch))
            yield found[-1]
        ratios = [row["ratio"] for row in found if "ratio" in row]
        energies = [row["energy_ratio"] for row in found if row.get("energy_ratio")]
        if ratios:
            yield {
                "case": f"median of {len(ratios)}", "dtype": str(dtype).removeprefix("torch."),
                "layout": "bsl" if last else "bsf", "ratio": statistics.median(ratios),
                "wins": sum(r > 1 for r in ratios) / len(ratios),
                "energy_ratio": statistics.median(energies) if energies else None,
            }  # fmt: skip


PARTS = {f"gpu-{str(dtype).removeprefix('torch.')}": partial(gpu, dtype) for dtype in DTYPES}
