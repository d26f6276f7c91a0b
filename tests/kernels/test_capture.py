"""On a GPU: layers of every family with Triton kernels in CUDA graphs, compiled, and launched without waiting."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conformance import fitted, specs
from torch import Tensor

import basis_search as bs
from basis_search.families import FAMILIES
from basis_search.families.protocol import relative_gap
from basis_search.layers.layer import LayerShape

pytestmark = pytest.mark.gpu

SHAPE, ROWS, DTYPE = (64, 48), 32, torch.bfloat16
KERNELS = [
    pytest.param(name, kernel.name, id=f"{name}-{kernel.name}")
    for name in ("stl", "kronecker", "pq")
    for kernel in FAMILIES[name].KERNELS
    if kernel.name.startswith("triton") and "tf32" not in kernel.name
]


def a_layer(family: str, kernel: str) -> bs.StructuredLinear:
    """On the GPU, with the first spec that the kernel accepts, or a chain that one launch computes."""
    found = next(k for k in FAMILIES[family].KERNELS if k.name == kernel)
    shape = LayerShape(*SHAPE, ROWS, DTYPE, torch.device("cuda"))
    spec = next(spec for spec in specs(family, SHAPE) if found.refuses(spec, shape) is None)
    if family == "kronecker":
        spec = bs.kronecker.Spec(chain="(1,8,8,6)*(8,6,8,1)")
    module = bs.StructuredLinear(*SHAPE, family, spec, fitted(family, spec, SHAPE), batch=ROWS)
    return module.to("cuda", DTYPE).use(kernel)


def rows(seed: int) -> Tensor:
    return torch.randn(ROWS, SHAPE[0], generator=torch.Generator().manual_seed(seed)).to("cuda", DTYPE)


@pytest.mark.parametrize(("family", "kernel"), KERNELS)
def test_a_layer_is_captured_and_replayed(family: str, kernel: str) -> None:
    module, x = a_layer(family, kernel), rows(0)
    side = torch.cuda.Stream()
    with torch.inference_mode():
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            module(x)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = module(x)
        x.copy_(rows(1))
        graph.replay()
        assert torch.equal(y, module(rows(1)))


@pytest.mark.parametrize(("family", "kernel"), KERNELS)
def test_a_call_does_not_wait(family: str, kernel: str) -> None:
    module, x = a_layer(family, kernel), rows(0)
    with torch.inference_mode():
        module(x)
        torch.cuda.set_sync_debug_mode("error")
        try:
            module(x)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("options", [{"fullgraph": True}, {"mode": "reduce-overhead", "fullgraph": True}], ids=str)
@pytest.mark.parametrize("family", ["stl", "kronecker", "pq"])
def test_a_layer_is_compiled(family: str, options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    module = a_layer(family, "triton")
    compiled = torch.compile(module, **options)
    with torch.no_grad():
        for seed in range(4):  # the third call of reduce-overhead is the first that is replayed
            assert relative_gap(compiled(rows(seed)), module(rows(seed)).double()) < 1e-2
