"""Conformance of every kernel: it agrees with the reference, keeps no state, has gradients, refuses with a sentence."""

from __future__ import annotations

import copy
import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from conformance import (
    BATCH,
    DTYPES,
    FAST,
    FAST_ON_CPU,
    ON_CPU,
    SHAPES,
    SMALL,
    cases,
    check,
    dtypes,
    expected,
    fitted,
    ids,
    in_places,
    inputs,
    is_sentence,
    layer,
    layouts,
    rows_of,
    specs,
)
from torch import Tensor

from basis_search.families import FAMILIES, dense
from basis_search.families.protocol import Kernel, Params, relative_gap, tolerance
from basis_search.layers.layer import LayerShape


@pytest.mark.parametrize(("where", "name", "kernel"), in_places(FAST), indirect=["where"])
def test_kernel_matches_the_reference_on_odd_sizes(where: str, name: str, kernel: Kernel) -> None:
    ran = False
    for dtype in dtypes(where):
        for spec, shape, params in cases(name, dtype, where):
            if kernel.refuses(spec, layer(shape, dtype=dtype, where=where)) is not None:
                continue
            for given in (params, {key: value for key, value in params.items() if key != "bias"}):
                packed = kernel.pack(spec, given)
                for rows in rows_of(where):
                    ran = True
                    check(name, kernel, spec, given, packed, inputs(rows, shape[0], dtype, where=where))
    if not ran:
        pytest.skip(str(kernel.refuses(spec, layer(shape, where=where))))


@pytest.mark.parametrize(("where", "name", "kernel"), in_places(FAST), indirect=["where"])
def test_kernel_takes_any_layout_and_leading_dimensions(where: str, name: str, kernel: Kernel) -> None:
    for dtype in dtypes(where):
        for spec, shape, params in cases(name, dtype, where):
            if kernel.refuses(spec, layer(shape, dtype=dtype, where=where)) is not None:
                continue
            packed = kernel.pack(spec, params)
            x = inputs(BATCH + 1, shape[0], dtype, where=where)
            for _, same in layouts(x):
                check(name, kernel, spec, params, packed, same)
            deep = inputs(30, shape[0], dtype, where=where).view(2, 3, 5, shape[0])
            y = check(name, kernel, spec, params, packed, deep)
            assert y.shape == (2, 3, 5, shape[1])
            check(name, kernel, spec, params, packed, deep.transpose(0, 2))
            check(name, kernel, spec, params, packed, x[0])
            for empty in ((0, shape[0]), (2, 0, shape[0])):
                with torch.no_grad():
                    y = kernel.run(spec, packed, torch.empty(empty, dtype=dtype, device=x.device))
                assert (y.shape, y.dtype) == ((*empty[:-1], shape[1]), dtype)


@pytest.mark.parametrize(("name", "kernel"), FAST_ON_CPU, ids=ids(FAST_ON_CPU))
def test_kernel_takes_parameters_in_training_and_copies_them(name: str, kernel: Kernel) -> None:
    """`StructuredLinear` holds the floating ones as nn.Parameter and may be copied."""
    shape = next(shape for shape in SHAPES if specs(name, shape))
    spec = specs(name, shape)[0]
    if kernel.refuses(spec, layer(shape)) is not None:
        pytest.skip(str(kernel.refuses(spec, layer(shape))))
    params = {
        key: value.clone().requires_grad_(value.is_floating_point()) for key, value in fitted(name, spec, shape).items()
    }
    frozen = {key: value.detach().clone() for key, value in params.items()}
    with torch.no_grad():
        packed = kernel.pack(spec, params)
        check(name, kernel, spec, frozen, packed, inputs(7, shape[0], torch.float32))
    for key, value in params.items():
        assert torch.equal(value, frozen[key]), "pack changed a parameter"
    again = kernel.pack(spec, copy.deepcopy(frozen))
    check(name, kernel, spec, frozen, again, inputs(7, shape[0], torch.float32))


@pytest.mark.parametrize(("name", "kernel"), FAST_ON_CPU, ids=ids(FAST_ON_CPU))
def test_kernel_keeps_no_state_between_or_during_calls(name: str, kernel: Kernel) -> None:
    shape = next(shape for shape in SHAPES if specs(name, shape))
    spec = specs(name, shape)[-1]
    if kernel.refuses(spec, layer(shape)) is not None:
        pytest.skip(str(kernel.refuses(spec, layer(shape))))
    params = fitted(name, spec, shape)
    packed = kernel.pack(spec, params)
    y = check(name, kernel, spec, params, packed, inputs(16, shape[0], torch.float32))
    copied = y.clone()
    check(name, kernel, spec, params, packed, inputs(16, shape[0], torch.float32, seed=1))
    assert torch.equal(y, copied), "a later call overwrote an earlier result"
    several = [inputs(16 + i % 3, shape[0], torch.float32, seed=i) for i in range(24)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda x: kernel.run(spec, packed, x), several))
    for x, got in zip(several, results, strict=True):
        want = expected(name, spec, params, x)
        assert relative_gap(got, want) <= tolerance(x.dtype, shape[0], kernel.growth(spec, params))


@pytest.mark.parametrize(("name", "kernel"), FAST_ON_CPU, ids=ids(FAST_ON_CPU))
def test_kernel_on_several_threads(name: str, kernel: Kernel) -> None:
    shape = next(shape for shape in reversed(SHAPES) if specs(name, shape))
    threads = torch.get_num_threads()
    for spec in specs(name, shape):
        if kernel.refuses(spec, layer(shape)) is not None:
            pytest.skip(str(kernel.refuses(spec, layer(shape))))
        params = fitted(name, spec, shape)
        try:
            for count in (2, 3):
                torch.set_num_threads(count)
                packed = kernel.pack(spec, params)
                for rows in (1, BATCH + 1, 515):
                    check(name, kernel, spec, params, packed, inputs(rows, shape[0], torch.float32))
        finally:
            torch.set_num_threads(threads)


@pytest.mark.parametrize(("name", "kernel"), FAST_ON_CPU, ids=ids(FAST_ON_CPU))
def test_a_kernel_that_refuses_gives_the_reason(name: str, kernel: Kernel) -> None:
    shape = next(shape for shape in SHAPES if specs(name, shape))
    for spec in specs(name, shape):
        for dtype in (*DTYPES, torch.float16):
            for device in ("cpu", "cuda", "meta"):
                of = LayerShape(*shape, BATCH, dtype, torch.device(device))
                reason = kernel.refuses(spec, of)
                assert reason is None or is_sentence(reason), reason
                if reason is not None:
                    assert kernel.refuses(spec, of) == reason
        if kernel.name.startswith("cpu"):
            assert kernel.refuses(spec, LayerShape(*shape, BATCH, device=torch.device("cuda"))) is not None


@pytest.mark.parametrize("name", ON_CPU)
def test_reference_returns_the_input_dtype_and_torch_never_refuses_float32(name: str) -> None:
    family = FAMILIES[name]
    reference, plain = family.KERNELS[0], next(kernel for kernel in family.KERNELS if kernel.name == "torch")
    for spec, shape, params in cases(name, torch.float32):
        for dtype in DTYPES:
            y = reference.run(spec, reference.pack(spec, params), inputs(3, shape[0], dtype))
            assert y.dtype == dtype
        assert reference.refuses(spec, layer(shape)) is None
        assert plain.refuses(spec, layer(shape)) is None
        assert math.isfinite(plain.growth(spec, params))
        assert plain.growth(spec, params) >= 1


DIFFERENTIABLE = [(name, kernel) for name in ON_CPU for kernel in FAMILIES[name].KERNELS if kernel.differentiable]


def run_with(kernel: Kernel, spec: Any, params: Params, names: list[str], x: Tensor, *values: Tensor) -> Tensor:
    return kernel.run(spec, kernel.pack(spec, {**params, **dict(zip(names, values, strict=True))}), x)


@pytest.mark.parametrize(("name", "kernel"), DIFFERENTIABLE, ids=ids(DIFFERENTIABLE))
def test_gradients_agree_with_finite_differences(name: str, kernel: Kernel) -> None:
    shape = SMALL if specs(name, SMALL) else next(shape for shape in reversed(SHAPES) if specs(name, shape))
    of = layer(shape, dtype=torch.float64)
    for spec in specs(name, shape)[:2]:
        if kernel.refuses(spec, of) is not None:
            pytest.skip(str(kernel.refuses(spec, of)))
        params = fitted(name, spec, shape, torch.float64)
        floating = [key for key, value in params.items() if value.dtype == torch.float64]
        assert "bias" in floating
        frozen = frozenset().union(*(other.frozen for other in FAMILIES[name].KERNELS))

        run = partial(run_with, kernel, spec, params, floating)
        x = inputs(3, shape[0], torch.float64).requires_grad_(not kernel.straight_through)
        values = [params[key].clone().requires_grad_(True) for key in floating]
        assert torch.autograd.gradcheck(run, (x, *values), fast_mode=True)
        # gradcheck passes where a parameter has no effect at all: its gradient must not be zero.
        reached = torch.autograd.grad(run(x, *values).square().sum(), values, allow_unused=True)
        assert all(
            grad is not None and bool((grad != 0).any())
            for key, grad in zip(floating, reached, strict=True)
            if key not in frozen
        )


# The suite itself: each of these kernels has one defect


def _altered(change: Any) -> Kernel:
    plain = dense.KERNELS[1]
    return dataclasses.replace(plain, run=lambda spec, packed, x: change(plain.run(spec, packed, x)))


@pytest.mark.parametrize(
    "wrong",
    [
        _altered(lambda y: torch.empty_like(y)),
        _altered(lambda y: torch.cat([y[:-1], torch.zeros_like(y[-1:])])),
        _altered(lambda y: y * (1 + 1e-4)),
        _altered(lambda y: y.bfloat16().to(y.dtype)),
        _altered(lambda y: y.double()),
        _altered(lambda y: y[None]),
    ],
    ids=["writes nothing", "drops a row", "scaled", "loses digits", "wrong dtype", "wrong shape"],
)
def test_the_suite_catches_a_wrong_kernel(wrong: Kernel) -> None:
    shape = SHAPES[1]
    (spec,) = specs("dense", shape)
    params = fitted("dense", spec, shape)
    x = inputs(BATCH + 1, shape[0], torch.float32)  # larger than malloc's smallest bins
    check("dense", dense.KERNELS[1], spec, params, params, x)
    with pytest.raises(AssertionError):
        check("dense", wrong, spec, params, params, x)
