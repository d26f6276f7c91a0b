"""Host time of calls of the Triton kernels, by the direct launch and by Triton's own.

With device=cpu the kernels are compiled for compute capability 9.0 and the C function that launches them is replaced by
one that returns, so that the Python part can be measured without a GPU. What is missing is that function (it reads the
arguments and calls cuLaunchKernelEx, 2 to 3 microseconds) and the difference between torch's allocators. With
device=cuda calls are launched, and the time is that until they are queued.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from basis_search.errors import BadInput
from basis_search.families import kronecker, pq, stl
from basis_search.families.protocol import TRITON_DTYPES, Kernel, Params
from basis_search.families.stl.bases import bases
from basis_search.layers.layer import LayerShape

Rows = list[dict[str, Any]]
Call = Callable[[], object]

ROUNDS, CALLS = 31, 100
"""Rounds of so many calls of each case in turn; the median round counts."""
ROWS, SIDE = 16, 64
"""Rows and features of the input: so small that the CPU's torch.bmm takes little but its own overhead."""


class Case(NamedTuple):
    """One call, with the launches that are ours and the host time aimed at in microseconds."""

    name: str
    call: Call
    launches: int
    aim: float | None
    product: Tensor | None = None  # in place of what torch.bmm returns, to leave it out


def host(device: str, threads: int) -> Rows:
    """Microseconds of host time per call: `direct` as the library launches, `triton` by Triton's own launch.

    Raises:
        BadInput: Triton is not installed, or its interpreter is on.
    """
    try:
        from basis_kernels.launch.gpu import launching_by_triton
        from basis_kernels.launch.gpu.direct import refusal
        from basis_kernels.launch.gpu.stub_driver import stub_driver
    except ImportError as missing:
        raise BadInput(f"the launch suite needs Triton, which cannot be imported here: {missing}") from missing
    if (reason := refusal()) is not None:
        raise BadInput(f"there is no direct launch to measure: {reason}")
    pretended = stub_driver() if device == "cpu" else contextlib.nullcontext()
    with pretended, torch.inference_mode():
        cases = list(_cases(torch.device(device)))
        direct = _times(cases, device)
        with launching_by_triton():
            by_triton = _times([case for case in cases if case.launches], device)
    return [
        {
            "case": case.name,
            "launches": case.launches,
            "microseconds": direct[case.name],
            "by Triton's own launch": by_triton.get(case.name),
            "aim": case.aim,
            "what launches": "a stub" if device == "cpu" else "the GPU",
        }
        for case in cases
    ]


def _times(cases: list[Case], device: str) -> dict[str, float]:
    """The median round of each case. On the CPU the process' own time counts, which other processes hardly change."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    times: dict[str, list[float]] = {case.name: [] for case in cases}
    for case in cases:
        for _ in range(3):
            case.call()
    for _ in range(ROUNDS):
        for case in cases:
            if device == "cuda":
                torch.cuda.synchronize()
            with _without_product(case.product):
                start = clock()
                for _ in range(CALLS):
                    case.call()
                times[case.name].append(1e6 * (clock() - start) / CALLS)
    return {name: statistics.median(values) for name, values in times.items()}


@contextlib.contextmanager
def _without_product(product: Tensor | None) -> Iterator[None]:
    """Inside, torch.bmm returns that tensor and does nothing; None leaves it as it is."""
    real = torch.bmm
    try:
        if product is not None:
            torch.bmm = lambda *operands: product  # type: ignore[assignment]
        yield
    finally:
        torch.bmm = real


def _kernel(kernels: tuple[Kernel, ...], name: str) -> Kernel:
    return next(kernel for kernel in kernels if kernel.name == name)


def _layer(kernel: Kernel, spec: Any, params: Params, x: Tensor) -> Call:
    return partial(kernel.run, spec, kernel.pack(spec, params), x)


def _cases(device: torch.device) -> Iterator[Case]:
    """Calls of the families' kernels as a search makes them, their single launches, and torch's own for scale."""
    from basis_kernels.stl import gpu

    draw = torch.Generator(device).manual_seed(0)
    dtype = TRITON_DTYPES[-1]  # bfloat16

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, device=device).to(dtype)

    x, wide = random(ROWS, SIDE), random(ROWS, 4 * SIDE)
    spec = stl.Spec(4, 24)
    found = bases(spec)
    weight, bias = random(24, SIDE // 4, SIDE // 4), random(SIDE)
    encode, decode = found.encode.to(device, dtype), found.decode.to(device, dtype)
    params: Params = {"weight": weight, "encode": encode, "decode": decode, "bias": bias}
    params["out_features"] = torch.tensor(SIDE)
    z = gpu.encode(x, encode, 4)
    s = torch.bmm(z, weight)
    yield Case("stl, encode", partial(gpu.encode, x, encode, 4), 1, 8)
    yield Case("stl, decode", partial(gpu.decode, s, decode, 4, ROWS, SIDE, bias), 1, 8)
    call = _layer(_kernel(stl.KERNELS, "triton"), spec, params, x)
    yield Case("stl, encode + torch.bmm + decode", call, 2, 25)
    yield Case("stl, the same without torch.bmm", call, 2, None, s)

    for text, name, launches in (
        ("(2,32,32,4)", "triton", 1),
        ("(1,16,16,16)*(16,16,16,1)", "triton", 2),
        ("(1,16,16,16)*(16,16,16,1)", "triton-fused", 1),
    ):
        chain = kronecker.Spec(chain=text)
        factors = kronecker.initialize(chain, LayerShape(4 * SIDE, 4 * SIDE), bias=True, seed=0)
        factors = {k: v.to(device, dtype) if v.is_floating_point() else v for k, v in factors.items()}
        call = _layer(_kernel(kronecker.KERNELS, name), chain, factors, wide)
        yield Case(f"kronecker {text}, {launches} launches", call, launches, 8 * launches)

    tree = pq.Spec(16)
    tables: Params = {
        "split_columns": torch.randint(SIDE, (16, 4), generator=draw, device=device).int(),
        "thresholds": random(16, 15),
        "table": torch.randint(256, (16, 16, SIDE), generator=draw, device=device).to(torch.uint8),
        "scale": torch.rand(SIDE, generator=draw, device=device),
        "offset": torch.rand(SIDE, generator=draw, device=device),
    }
    yield Case("pq, codes + sums", _layer(_kernel(pq.KERNELS, "triton"), tree, tables, x), 2, 15)

    square = random(SIDE, SIDE)
    yield Case(f"torch's linear, {ROWS} x {SIDE} x {SIDE}", partial(F.linear, x, square), 0, None)
    yield Case(f"torch.bmm, 24 x {ROWS // 4} x {SIDE // 4} x {SIDE // 4}", partial(torch.bmm, z, weight), 0, None)
    yield Case("new_empty", partial(x.new_empty, (ROWS, SIDE)), 0, None)


PARTS = {"host": host}
