"""Latency ratios t_candidate / t_dense of the family map's candidates at n = k = m; those of a size take turns."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from basis_search.bench.stored_results import StoredResults
from basis_search.evaluation.timing import measure
from basis_search.families import int8, lowrank, stl
from basis_search.families.protocol import (
    Params,
    choose,
    relative_gap,
    tolerance,
)
from basis_search.families.stl.bases import bases
from basis_search.families.stl.fit import encode_weight
from basis_search.layers.layer import Layer, LayerShape

Spec = int8.Spec | lowrank.Spec | stl.Spec

RANKS = (*range(16, 47, 2), 47)
KINDS = ("approximate", "ternary", "ternary-turned")
SHARES = tuple(part / 32 for part in range(1, 15))
"""Ranks of low rank over the size."""
MIXED_RANKS, MIXED_WAISTS = (20, 28, 36, 44), (1 / 16, 1 / 8)
"""Of tiles with a low-rank part: products, and the part's rank over the size."""
RESULTS = Path("runs") / "stl-map-times.json"
ROUNDS = 7


def candidates(size: int) -> list[Spec]:
    """The candidates timed for layers of that size."""
    return [
        int8.Spec(),
        *(lowrank.Spec(int(share * size)) for share in SHARES),
        *(stl.Spec(4, rank, kind) for kind in KINDS for rank in RANKS),
        stl.Spec(4, 49, "winograd2"),
        stl.Spec(2, 7, "winograd"),
        *(
            stl.Spec(4, rank, kind, waist=int(share * size))
            for kind in ("approximate", "ternary")
            for share in MIXED_WAISTS
            for rank in MIXED_RANKS
        ),
    ]


def label(spec: Spec) -> str:
    """Name in the rows, such as "ternary 24 + rank 16"."""
    if isinstance(spec, int8.Spec):
        return "int8"
    if isinstance(spec, lowrank.Spec):
        return f"rank {spec.rank}"
    return f"{spec.basis} {spec.rank}" + (f" + rank {spec.waist}" if spec.waist else "")


def shares(size: int, threads: int) -> dict[str, float]:
    """Median latency ratios by label, stored in RESULTS."""
    found: dict[str, float] = StoredResults(RESULTS).of(f"{size}, threads {threads}", partial(_timed, size, threads))
    return found


def _timed(size: int, threads: int) -> dict[str, float]:
    draw = torch.Generator().manual_seed(size)
    x, weight = torch.randn(size, size, generator=draw), torch.randn(size, size, generator=draw) / size**0.5
    layer, shape = Layer("square", weight, None, x, x, size), LayerShape(size, size, size)
    runs: dict[str, Callable[[], Tensor]] = {"linear": partial(F.linear, x, weight)}
    for spec in candidates(size):
        kernels, params = _made(spec, layer)
        kernel = choose(kernels, spec, shape)
        call = runs[label(spec)] = partial(kernel.run, spec, kernel.pack(spec, params), x)
        reference = kernels[0]
        gap = relative_gap(call(), reference.run(spec, reference.pack(spec, params), x.double()))
        if not gap <= tolerance(x.dtype, size, kernel.growth(spec, params)):
            raise RuntimeError(
                f"{label(spec)} at {size}: {kernel.name} differs from its reference by {gap:.2e}; no speed is reported"
            )
    timings = measure(runs, "linear", threads=threads, rounds=ROUNDS)
    return {name: timings[name].ratio for name in runs}


def _made(spec: Spec, layer: Layer) -> tuple[Any, Params]:
    """The family's kernels, and parameters of the right shapes; speed does not depend on the values."""
    if isinstance(spec, int8.Spec):
        return int8.KERNELS, int8.fit(spec, layer)
    size, weight = len(layer.weight), layer.weight
    rank = spec.rank if isinstance(spec, lowrank.Spec) else spec.waist
    narrow = {"up": weight[:, :rank].contiguous(), "down": weight[:rank].contiguous()} if rank else {}
    if isinstance(spec, lowrank.Spec):
        return lowrank.KERNELS, narrow
    basis = bases(spec)
    params = {"encode": basis.encode.float(), "decode": basis.decode.float(), "out_features": torch.tensor(size)}
    params["weight"] = encode_weight(basis.encode_weight.float(), weight, spec.sides)
    return stl.KERNELS, {**params, **narrow}
