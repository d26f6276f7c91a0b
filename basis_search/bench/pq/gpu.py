"""Product quantisation on a GPU against `torch.nn.functional.linear`, batch 1 to 4096."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from basis_search.evaluation.timing import measure
from basis_search.families.pq import kernels_triton
from basis_search.families.pq.reference import reference
from basis_search.families.pq.spec import BUCKETS, Spec
from basis_search.families.protocol import relative_gap, tolerance
from basis_search.layers.layer import LayerShape

Call = Callable[[], object]

LAYERS = ((768, 3072, 48), (3072, 768, 192), (4096, 4096, 64), (4096, 4096, 256))
"""Inputs, outputs, codebooks."""
BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
CHECKED_ROWS = 256


def gpu(device: str, threads: int, quick: bool = False) -> Iterator[Mapping[str, Any]]:
    """Forward in bfloat16, and the encoder alone; ratio = linear's time over the row's, above 1 is faster.

    Each batch is checked first against the float64 reference; a row beyond the tolerance reports that and no time. The
    quick form takes two layers and three batches.
    """
    for shape in LAYERS[2:] if quick else LAYERS:
        for batch in BATCHES[:5:2] if quick else BATCHES:
            with torch.inference_mode():
                rows = _one(torch.device(device), *shape, batch)
            yield from rows


def random_params(spec: Spec, shape: LayerShape, draw: torch.Generator) -> dict[str, torch.Tensor]:
    """Random trees and tables of a layer: speed hardly depends on the values."""
    d, m, device = shape.in_features, shape.out_features, shape.device
    codebooks = spec.codebooks
    return {
        "split_columns": torch.randint(d, (codebooks, 4), generator=draw, device=device).int(),
        "thresholds": torch.randn(codebooks, BUCKETS - 1, generator=draw, device=device).to(shape.dtype),
        "table": torch.randint(256, (codebooks, BUCKETS, m), generator=draw, device=device).to(torch.uint8),
        "scale": torch.rand(m, generator=draw, device=device) + 0.5,
        "offset": -100.0 * codebooks * torch.rand(m, generator=draw, device=device),
    }


def _one(device: torch.device, d: int, m: int, codebooks: int, batch: int) -> list[Mapping[str, Any]]:
    from basis_search.families.pq.kernels import KERNELS

    case = f"{batch} x {d} x {m}, C={codebooks}"
    draw = torch.Generator(device).manual_seed(batch)
    dtype, spec = torch.bfloat16, Spec(codebooks)
    shape = LayerShape(d, m, batch, dtype, device)
    refusal = kernels_triton.refuses(spec, shape)
    if refusal is not None:
        return [{"case": case, "failure": refusal}]
    params = random_params(spec, shape, draw)
    x = torch.randn(batch, d, generator=draw, device=device).to(dtype)
    weight = torch.randn(m, d, generator=draw, device=device).to(dtype)
    packed = kernels_triton.pack(spec, params)
    growth = next(k for k in KERNELS if k.name == "triton").growth(spec, {k: v.cpu() for k, v in params.items()})
    limit = tolerance(dtype, codebooks, growth)
    gap = relative_gap(kernels_triton.run(spec, packed, x)[:CHECKED_ROWS], reference(spec, params, x[:CHECKED_ROWS]))
    if not gap <= limit:
        return [{"case": case, "failure": f"beyond {limit:.1e} of the reference: {gap:.1e}"}]
    calls: dict[str, Call] = {
        "linear": partial(F.linear, x, weight),
        "triton": partial(kernels_triton.run, spec, packed, x),
        "triton, encode alone": partial(kernels_triton.encode_rows, packed, x),
    }
    timings = measure(calls, "linear", device=device, rounds=11)
    return [
        {
            "case": f"{case}: {name}", "baseline": "torch.nn.functional.linear, bfloat16",
            "ratio": 1 / timing.ratio, "spread": timing.ratio_spread, "microseconds": 1e6 * timing.seconds,
        }
        for name, timing in timings.items()
    ]  # fmt: skip
