"""Strassen-Tile benchmarks: CPU kernels against torch's linear, and the list of parts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from basis_search.bench.stl.bases import cheap_bases, stored_bases
from basis_search.bench.stl.family_map import winners, winners_by_time
from basis_search.bench.stl.fit import wide_layers
from basis_search.bench.stl.gpu import gpu, training
from basis_search.bench.stl.int8 import by_int8
from basis_search.bench.stl.starts import by_start
from basis_search.bench.stl.t2t import t2t
from basis_search.evaluation.timing import measure
from basis_search.families import dense, stl
from basis_search.families.protocol import (
    Params,
    choose,
    relative_gap,
    tolerance,
)
from basis_search.families.stl.bases import bases
from basis_search.families.stl.fit import encode_weight
from basis_search.families.stl.reference import reference
from basis_search.layers.layer import LayerShape

Rows = list[dict[str, Any]]

SIZES = (512, 1024, 2048, 4096)
SPECS = (stl.Spec(4, 24), stl.Spec(4, 49, "winograd2"), stl.Spec(2, 7, "winograd"))
EXACT_ERROR = 1e-5


def cpu(device: str, threads: int) -> Rows:
    """Square layers n = k = m in float32, the fastest kernel against torch.nn.functional.linear in the same run.

    Results are checked before timing: against the reference and, for exact schemes, against the float64 product.
    `ratio`: time over the baseline's; `limit`: operations over dense operations; `reached`: limit over ratio.
    """
    rows: Rows = []
    for size in SIZES:
        draw = torch.Generator().manual_seed(size)
        x, weight = torch.randn(size, size, generator=draw), torch.randn(size, size, generator=draw) / size**0.5
        shape = LayerShape(size, size, size)
        runs: dict[str, Callable[[], Tensor]] = {"linear": partial(F.linear, x, weight)}
        gaps = {}
        for spec in SPECS:
            kernel = choose(stl.KERNELS, spec, shape)
            params = _encoded(spec, weight)
            packed = kernel.pack(spec, params)
            runs[str(spec)] = partial(kernel.run, spec, packed, x)
            gap = relative_gap(runs[str(spec)](), reference(spec, params, x))
            if gap > tolerance(torch.float32, size, kernel.growth(spec, params)):
                raise RuntimeError(
                    f"{spec} at {size}: {kernel.name} differs from its reference by {gap:.2e}; no speed is reported"
                )
            gaps[str(spec)] = kernel.name, gap, _error(spec, runs[str(spec)](), x, weight)
        timings = measure(runs, "linear", threads=threads, rounds=11 if size < 4096 else 5)
        whole = dense.cost(dense.Spec(), shape).flops
        for spec in SPECS:
            timing, (name, gap, error) = timings[str(spec)], gaps[str(spec)]
            limit = stl.cost(spec, shape).flops / whole
            rows.append(
                {
                    "case": f"n=k=m={size}, {spec.basis} tile {spec.tile} rank {spec.rank}",
                    "kernel": name,
                    "baseline": "torch.nn.functional.linear",
                    "seconds": timing.seconds,
                    "ratio": timing.ratio,
                    "spread": timing.ratio_spread,
                    "speedup": 1 / timing.ratio,
                    "limit": limit,
                    "reached": limit / timing.ratio,
                    "gap": gap,
                    "error": error,
                }
            )
    return rows


def _encoded(spec: stl.Spec, weight: Tensor) -> Params:
    """Encoded weights without a fit: speed does not depend on the values."""
    basis = bases(spec)
    encoded = encode_weight(basis.encode_weight, weight.double(), spec.sides)
    params = {"weight": encoded.float(), "encode": basis.encode.float(), "decode": basis.decode.float()}
    return {**params, "out_features": torch.tensor(len(weight))}


def _error(spec: stl.Spec, y: Tensor, x: Tensor, weight: Tensor) -> float:
    """Relative error against the float64 product, checked for exact schemes."""
    error = relative_gap(y, x.double() @ weight.double().T)
    if bases(spec).exact and error > EXACT_ERROR:
        raise RuntimeError(f"{spec}: relative error {error:.2e} is above {EXACT_ERROR}; no speed is reported")
    return error


PARTS = {
    "cpu": cpu,
    "gpu": gpu,
    "gpu training": training,
    "map": winners,
    "map by time": winners_by_time,
    "t2t": t2t,
    "bases": stored_bases,
    "cheap bases": cheap_bases,
    "starts": by_start,
    "int8": by_int8,
    "fit": wide_layers,
}
DEVICES = {
    "cpu": "cpu",
    "gpu": "cuda",
    "gpu training": "cuda",
    "map": "cpu",
    "map by time": "cpu",
    "t2t": "cpu",
    "bases": "cpu",
    "cheap bases": "cpu",
    "starts": "cpu",
    "int8": "cpu",
    "fit": "cpu",
}
