"""Layers, specs, inputs and the comparison with the reference, shared by the conformance tests of all families.

The tests run in up to three places: "cpu", "double" (the test double of a CUDA device, see pretend_cuda) and "gpu".
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import optuna
import pytest
import torch
from _pytest.mark import ParameterSet
from torch import Tensor

from basis_search.errors import BadInput
from basis_search.families import FAMILIES
from basis_search.families.protocol import Kernel, Params, relative_gap, spec_hash, tolerance
from basis_search.layers.layer import Layer

optuna.logging.set_verbosity(optuna.logging.WARNING)

SHAPES = ((64, 48), (37, 29), (35, 70))  # (in, out): even, odd, and widening with few common divisors
SMALL = (12, 9)
FOR_GPUS = ((256, 128),)  # multiples that every operator of torch takes
CUDA = torch.device("cuda:0")
BATCH = 32
ROWS = (1, 3, 7, 16, BATCH - 1, BATCH, BATCH + 1)
SAMPLES = 160
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
GPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GPU_SHAPES, GPU_ROWS = SHAPES[:2], (7, BATCH)
"""Fewer on a GPU, where each divisibility is a kernel to compile."""
SEEDS = (0, 1, 2)

FAST = [(name, kernel) for name, family in FAMILIES.items() for kernel in family.KERNELS[1:]]


DEVICES = {"cpu": torch.device("cpu"), "double": torch.device("cuda:0"), "gpu": torch.device("cuda:0")}


def ids(values: list[tuple[str, Kernel]]) -> list[str]:
    return [f"{name}-{kernel.name}" for name, kernel in values]


def in_places(values: Iterable[str | tuple[str, Kernel]], *places: str) -> list[ParameterSet]:
    """(where, name) of families, or (where, name, kernel), for each place whose device it could run on."""
    found = []
    for where in places or DEVICES:
        for value in values:
            name, *kernel = (value,) if isinstance(value, str) else value
            wrong = {"cpu": ("triton",), "double": ("cpu", "triton"), "gpu": ("cpu",)}[where]
            if (where == "cpu" and name not in ON_CPU) or any(k.name.startswith(wrong) for k in kernel):
                continue
            marks = pytest.mark.gpu if where == "gpu" else ()
            label = "-".join([where, name, *(k.name for k in kernel)])
            found.append(pytest.param(where, name, *kernel, id=label, marks=marks))
    return found


@cache
def layer(shape: tuple[int, int], bias: bool = True, dtype: torch.dtype = torch.float32, where: str = "cpu") -> Layer:
    """Correlated inputs with a mean, as layers see them."""
    if where != "cpu":
        return layer(shape, bias, dtype).to(DEVICES[where]).on_device()
    in_features, out_features = shape
    draw = torch.Generator().manual_seed(in_features * 1000 + out_features)
    mix = torch.randn(in_features, in_features, generator=draw) * torch.linspace(1, 0.1, in_features)
    x = torch.randn(SAMPLES + 40, in_features, generator=draw) @ mix / in_features**0.5 + 0.2
    return Layer(
        name=f"{out_features}x{in_features}",
        weight=torch.randn(out_features, in_features, generator=draw) / in_features**0.5,
        bias=torch.randn(out_features, generator=draw) if bias else None,
        inputs=x[:SAMPLES],
        held_out=x[SAMPLES:],
        batch=BATCH,
        dtype=dtype,
    )


def sampled(name: str, of: Layer, seed: int) -> tuple[Any, dict[str, Any]]:
    """A spec drawn by optuna, and the parameters it was drawn as."""
    family = FAMILIES[name]
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed)).ask()
    return family.suggest(trial, of, family.Space()), trial.params


def asked(name: str, shape: tuple[int, int]) -> Layer:
    """A layer of that shape on a device that the family is for: a GPU if it has no spec for a CPU layer of 64 x 64."""
    return dataclasses.replace(layer(shape, dtype=torch.bfloat16), device=CUDA) if for_gpus(name) else layer(shape)


@cache
def for_gpus(name: str) -> bool:
    try:
        sampled(name, layer((64, 64)), 0)
    except BadInput:
        return True
    return False


@cache
def specs(name: str, shape: tuple[int, int], where: str = "cpu") -> tuple[Any, ...]:
    """Different specs for a layer of that shape: those that the family suggests for it, none where it refuses.

    Of a family that is for GPUs alone, whose operators take few shapes, all examples: its plain kernels run anywhere.
    """
    if for_gpus(name):
        return FAMILIES[name].examples(layer(shape))
    found: dict[str, Any] = {}
    for seed in SEEDS:
        try:
            spec, _ = sampled(name, layer(shape, where=where), seed)
        except BadInput:
            return ()
        found[spec_hash(name, spec)] = spec
    return tuple(found.values())


@cache
def fitted(
    name: str, spec: Any, shape: tuple[int, int], dtype: torch.dtype = torch.float32, where: str = "cpu"
) -> Params:
    params = FAMILIES[name].fit(spec, layer(shape, dtype=dtype, where=where))
    assert params, f"{name} has no parameters"
    return params


def cases(name: str, dtype: torch.dtype, where: str = "cpu") -> Iterator[tuple[Any, tuple[int, int], Params]]:
    """Specs, shapes and parameters; one spec per shape for dtypes other than float32 and on devices."""
    some = False
    for shape in GPU_SHAPES if where == "gpu" else SHAPES:
        for spec in specs(name, shape, where)[: None if dtype == torch.float32 and where == "cpu" else 1]:
            some = True
            yield spec, shape, fitted(name, spec, shape, dtype, where)
    assert some, f"{name} suggests nothing for any of {SHAPES}"


ON_CPU = [name for name in FAMILIES if any(specs(name, shape) for shape in SHAPES)]
"""Families that take layers on the CPU."""

FAST_ON_CPU = [(name, kernel) for name, kernel in FAST if name in ON_CPU]


def dtypes(where: str) -> tuple[torch.dtype, ...]:
    return GPU_DTYPES if where == "gpu" else DTYPES


def rows_of(where: str) -> tuple[int, ...]:
    return GPU_ROWS if where == "gpu" else ROWS


def is_sentence(reason: str) -> bool:
    return len(reason) >= 20 and " " in reason and "\n" not in reason and not reason.endswith(" ")


def inputs(rows: int, in_features: int, dtype: torch.dtype, seed: int = 0, where: str = "cpu") -> Tensor:
    draw = torch.Generator().manual_seed(seed + rows)
    return (torch.randn(rows, in_features, generator=draw) + 0.2).to(DEVICES[where], dtype)


def expected(name: str, spec: Any, params: Params, x: Tensor) -> Tensor:
    """The reference's output in float64."""
    reference = FAMILIES[name].KERNELS[0]
    return reference.run(spec, reference.pack(spec, params), x.double())


def poison(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    """Leaves NaNs in memory where an output of that shape is likely to be allocated next."""
    for tensor in [torch.full(shape, math.nan, dtype=dtype, device=device) for _ in range(4)]:
        del tensor


def check(name: str, kernel: Kernel, spec: Any, params: Params, packed: Any, x: Tensor) -> Tensor:
    """Runs the kernel on x and compares it with the reference."""
    want = expected(name, spec, params, x)
    before = x.clone()
    poison(tuple(want.shape), x.dtype, x.device)
    with torch.no_grad():
        y = kernel.run(spec, packed, x)
    assert (y.shape, y.dtype, y.device) == (want.shape, x.dtype, x.device)
    assert torch.equal(x, before), "the kernel changed its input"
    gap = relative_gap(y, want)
    limit = tolerance(x.dtype, x.shape[-1], kernel.growth(spec, params))
    assert gap <= limit, f"{name} {kernel.name} {spec} {tuple(x.shape)} {x.dtype}: gap {gap:.2e} above {limit:.2e}"
    return y


def layouts(x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The values of x [rows, in] in other memory layouts, with NaNs in the memory between them."""
    rows, width = x.shape
    buffer = torch.full((rows * width + 1,), math.nan, dtype=x.dtype, device=x.device)
    buffer[1:] = x.flatten()
    yield "unaligned", buffer[1:].view(rows, width)
    yield "transposed", x.T.contiguous().T
    wide = torch.full((rows, 2 * width + 3), math.nan, dtype=x.dtype, device=x.device)
    wide[:, 3 : 3 + width] = x
    yield "columns of a wider tensor", wide[:, 3 : 3 + width]
    strided = torch.full((rows, 2 * width), math.nan, dtype=x.dtype, device=x.device)
    strided[:, ::2] = x
    yield "every other column", strided[:, ::2]
    tall = torch.full((2 * rows, width), math.nan, dtype=x.dtype, device=x.device)
    tall[::2] = x
    yield "every other row", tall[::2]
    yield "one row, repeated", x[:1].expand(rows, width)
