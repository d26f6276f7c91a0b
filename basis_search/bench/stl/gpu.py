"""Strassen-Tile layers on a GPU against cuBLAS: n = k = m from 2048 to 16384, forward and one training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from basis_search.evaluation.timing import measure
from basis_search.families import dense, stl
from basis_search.families.protocol import Params, relative_gap, tolerance
from basis_search.families.stl.bases import bases
from basis_search.families.stl.reference import reference
from basis_search.layers.layer import LayerShape

Rows = list[dict[str, Any]]
Call = Callable[[], object]

SIZES = (2048, 4096, 8192, 16384)
QUICK_SIZES = (2048, 8192)
SPECS = (stl.Spec(4, 24), stl.Spec(4, 32), stl.Spec(4, 49, "winograd2"), stl.Spec(2, 7, "winograd"))
QUICK_SPECS = SPECS[:1] + SPECS[2:3]
NAMES = ("torch", "triton-fused", "triton")
CHECKED_ROWS = 512
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def gpu(device: str, threads: int, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Every GPU kernel against `torch.nn.functional.linear` (float32 as tf32 on both sides).

    Each result is checked first: a sample of its tile rows against the float64 reference. The quick form takes two
    sizes, two specs and bfloat16.
    """
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        for size in QUICK_SIZES if quick else SIZES:
            for dtype in DTYPES if size == 8192 and not quick else DTYPES[:1]:
                yield from _square(torch.device(device), size, dtype, QUICK_SPECS if quick else SPECS)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _square(device: torch.device, size: int, dtype: torch.dtype, specs: tuple[stl.Spec, ...]) -> Rows:
    draw = torch.Generator(device).manual_seed(size)
    x = torch.randn(size, size, generator=draw, device=device).to(dtype)
    weight = (torch.randn(size, size, generator=draw, device=device) / size**0.5).to(dtype)
    shape = LayerShape(size, size, size, dtype, device)
    runs: dict[str, Call] = {"linear": partial(F.linear, x, weight)}
    gaps: dict[str, float] = {}
    for spec in specs:
        params = random_params(spec, shape)
        for kernel in stl.KERNELS:
            if kernel.name in NAMES and kernel.refuses(spec, shape) is None:
                name = f"{kernel.name}, {spec.basis} tile {spec.tile} rank {spec.rank}"
                packed = kernel.pack(spec, params)
                with torch.no_grad():
                    gaps[name] = _gap(partial(kernel.run, spec, packed), spec, params, x, kernel.growth(spec, params))
                runs[name] = partial(kernel.run, spec, packed, x)
    with torch.inference_mode():
        timings = measure(runs, "linear", device=device, rounds=11)
    whole = dense.cost(dense.Spec(), shape).flops
    flops = {f"{s.basis} tile {s.tile} rank {s.rank}": stl.cost(s, shape).flops for s in specs}
    rows: Rows = []
    for name, gap in gaps.items():
        limit = flops[name.split(", ")[1]] / whole
        rows.append(
            {
                "case": f"n=k=m={size} {str(dtype).removeprefix('torch.')}, {name}",
                "baseline": "torch.nn.functional.linear",
                "seconds": timings[name].seconds,
                "ratio": timings[name].ratio,
                "spread": timings[name].ratio_spread,
                "speedup": 1 / timings[name].ratio,
                "limit": limit,
                "reached": limit / timings[name].ratio,
                "TFLOP/s of linear": whole / timings["linear"].seconds / 1e12,
                "gap": gap,
            }
        )
    return rows


def random_params(spec: stl.Spec, shape: LayerShape) -> Params:
    """Random encoded weights of realistic size: speed does not depend on the values."""
    basis, t = bases(spec), spec.sides[0]
    encoded = torch.randn(spec.rank, shape.in_features // t, shape.out_features // t, device=shape.device)
    params = {"weight": encoded / shape.in_features**0.5, "encode": basis.encode, "decode": basis.decode}
    params = {name: value.to(shape.device, shape.dtype) for name, value in params.items()}
    return {**params, "out_features": torch.tensor(shape.out_features)}


def _gap(run: Callable[[Tensor], Tensor], spec: stl.Spec, params: Params, x: Tensor, growth: float) -> float:
    """The kernel's gap on sampled tile rows of the timed input; raises RuntimeError above the rounding tolerance."""
    t = spec.sides[0]
    first = torch.linspace(0, len(x) // t - 1, CHECKED_ROWS // t, device=x.device).long()
    rows = (first[:, None] * t + torch.arange(t, device=x.device)).flatten()
    gap = relative_gap(run(x)[rows], reference(spec, params, x[rows]))
    exact = torch.finfo(x.dtype).eps if x.dtype != torch.float32 else 2.0**-10  # tf32 keeps ten bits
    limit = max(tolerance(x.dtype, x.shape[1], growth), 4 * exact * growth)
    if not gap <= limit:
        raise RuntimeError(f"{spec} at {x.shape[1]} differs from its reference by {gap:.2e} > {limit:.2e}; no speed")
    return gap


def training(device: str, threads: int, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Forward and backward with gradients for input, weights and both bases, against the dense layer's."""
    for size in QUICK_SIZES[:1] if quick else SIZES[:3]:
        shape = LayerShape(size, size, size, torch.bfloat16, torch.device(device))
        x = torch.randn(size, size, device=device, dtype=shape.dtype, requires_grad=True)
        push = torch.randn(size, size, device=device, dtype=shape.dtype)
        weight = (torch.randn(size, size, device=device) / size**0.5).to(shape.dtype).requires_grad_()
        calls: dict[str, Call] = {"linear": partial(_step, partial(F.linear, weight=weight), x, push, [weight])}
        spec = SPECS[0]
        params = random_params(spec, shape)
        leaves = [params[name].requires_grad_() for name in ("weight", "encode", "decode")]
        for kernel in stl.KERNELS:
            if kernel.name in NAMES and kernel.refuses(spec, shape) is None:
                calls[kernel.name] = partial(_step, partial(kernel.run, spec, params), x, push, leaves)
        timings = measure(calls, "linear", device=device, rounds=7)
        for name in list(calls)[1:]:
            timing = timings[name]
            yield {
                "case": f"training step, n=k=m={size} bfloat16, {name}, approximate tile 4 rank 24",
                "seconds": timing.seconds,
                "ratio": timing.ratio,
                "spread": timing.ratio_spread,
                "speedup": 1 / timing.ratio,
            }


def _step(run: Callable[[Tensor], Tensor], x: Tensor, push: Tensor, leaves: list[Tensor]) -> None:
    torch.autograd.grad(run(x), [x, *leaves], push)
