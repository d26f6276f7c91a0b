"""Every family on a CUDA device: fits as on the CPU, forwards that never make the host wait, CUDA graphs, gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from conformance import BATCH, DEVICES, FAST, ON_CPU, SHAPES, expected, fitted, in_places, inputs, layer, specs

import basis_search as bs
from basis_search.evaluation.operator_error import operator_error
from basis_search.families import FAMILIES
from basis_search.families.protocol import Kernel, relative_gap, tolerance

KERNELS = pytest.mark.parametrize(("where", "name", "kernel"), in_places(FAST, "double", "gpu"), indirect=["where"])


def on(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("where", "name"), in_places(names or FAMILIES, "double", "gpu"), indirect=["where"])


def chosen(name: str, where: str) -> tuple[Any, tuple[int, int]]:
    """A spec, and the shape of the layer that it was suggested for."""
    shape = next((shape for shape in SHAPES if specs(name, shape, where)), None)
    if shape is None:
        pytest.skip(f"{name} refuses every layer of {SHAPES} on this device")
    return specs(name, shape, where)[0], shape


@contextmanager
def never_waiting() -> Iterator[None]:
    """A wait of the host for the device raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on(*ON_CPU)
def test_a_fit_is_as_good_as_on_the_cpu(where: str, name: str) -> None:
    for shape in SHAPES:
        for spec in specs(name, shape)[:1]:
            reference = FAMILIES[name].KERNELS[0]
            errors = []
            for place in ("cpu", where):
                of, params = layer(shape, where=place), fitted(name, spec, shape, where=place)
                errors.append(
                    operator_error(of, reference.run(spec, reference.pack(spec, params), of.held_out.double()))
                )
            assert errors[1] == pytest.approx(errors[0], rel=0.02, abs=1e-6), spec


@KERNELS
def test_a_kernel_never_makes_the_host_wait(where: str, name: str, kernel: Kernel) -> None:
    spec, shape = chosen(name, where)
    for dtype in (torch.float32, torch.bfloat16):
        if kernel.refuses(spec, layer(shape, dtype=dtype, where=where)) is not None:
            continue
        packed = kernel.pack(spec, fitted(name, spec, shape, dtype, where))
        x = inputs(BATCH, shape[0], dtype, where=where)
        with torch.no_grad():
            kernel.run(spec, packed, x)  # compiles
            with never_waiting():
                kernel.run(spec, packed, x)


@KERNELS
def test_a_kernel_is_replayed_from_a_cuda_graph(where: str, name: str, kernel: Kernel) -> None:
    spec, shape = chosen(name, where)
    if kernel.refuses(spec, layer(shape, where=where)) is not None:
        pytest.skip(str(kernel.refuses(spec, layer(shape, where=where))))
    params = fitted(name, spec, shape, where=where)
    packed, x = kernel.pack(spec, params), inputs(BATCH, shape[0], torch.float32, where=where)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.no_grad():
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            kernel.run(spec, packed, x)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            y = kernel.run(spec, packed, x)
        x.copy_(inputs(BATCH, shape[0], torch.float32, seed=1, where=where))
        graph.replay()
    want = expected(name, spec, params, x)
    assert relative_gap(y, want) <= tolerance(x.dtype, shape[0], kernel.growth(spec, params))


@on()
def test_a_module_runs_learns_and_moves(where: str, name: str) -> None:
    spec, shape = chosen(name, where)
    module = bs.fit(layer(shape, where=where), name, spec)
    x = inputs(BATCH, shape[0], torch.float32, where=where)
    with torch.no_grad():
        module(x)  # packs
        with never_waiting():
            y = module(x)
    assert y.device == DEVICES[where]
    assert not module.kernel.startswith("cpu")
    module(x).square().mean().backward()
    reached = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    if name in ON_CPU:
        moved = module.to("cpu")
        moved.zero_grad()
        z = moved(x.cpu())
        z.square().mean().backward()
        assert relative_gap(y.cpu(), z.detach()) <= 10 * tolerance(torch.float32, shape[0], 1.0)
        for n, gradient in reached.items():
            torch.testing.assert_close(gradient.cpu(), moved.get_parameter(n).grad, rtol=1e-3, atol=1e-4)
