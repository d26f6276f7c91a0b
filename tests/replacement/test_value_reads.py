"""Calls read no tensor's value into Python: a GPU would be waited for, and no CUDA graph could capture the call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conformance import fitted, inputs, specs
from fake_cuda_devices import FakeCuda
from small_specs import SPECS
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import basis_search as bs
from basis_search.families import FAMILIES
from basis_search.families.protocol import OUT_FEATURES, Kernel

FREE = ("dense", "lowrank", "stl", "kronecker", "pq")
"""Families whose "torch" kernels read no value on any device; that of int8 reads the CPU's, which waits for nothing."""
SHAPE = (37, 29)  # padded by stl and kronecker, which therefore store the number of outputs
KERNELS = [
    pytest.param(name, kernel, id=f"{name}-{kernel.name}")
    for name in FREE
    for kernel in FAMILIES[name].KERNELS
    if kernel.name in ("reference", "torch")
]


class NoReads(TorchDispatchMode):
    """Raises where a tensor's value is read: by `item`, `int`, `float` or `bool`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket is torch.ops.aten._local_scalar_dense:
            raise AssertionError("a value was read")
        return func(*args, **(kwargs or {}))


def a_module(name: str) -> bs.StructuredLinear:
    """A structured layer whose stored number of outputs is wrong: only the module's own is right."""
    spec = specs(name, SHAPE)[0]
    module = bs.StructuredLinear(*SHAPE, name, spec, fitted(name, spec, SHAPE)).use("torch")
    if OUT_FEATURES in module.params:
        module.params[OUT_FEATURES].fill_(1)
    return module


def test_a_size_is_stored_by_the_families_that_pad() -> None:
    assert {name for name in FREE if OUT_FEATURES in a_module(name).params} == {"stl", "kronecker"}
    with pytest.raises(AssertionError, match="a value was read"), NoReads():
        int(torch.tensor(3))


@pytest.mark.parametrize(("name", "kernel"), KERNELS)
def test_a_kernel_reads_no_value(name: str, kernel: Kernel) -> None:
    for spec in specs(name, SHAPE):
        packed = kernel.pack(spec, fitted(name, spec, SHAPE))
        with NoReads(), torch.no_grad():
            assert kernel.run(spec, packed, inputs(5, SHAPE[0], torch.float32)).shape == (5, SHAPE[1])


@pytest.mark.parametrize("name", FREE)
def test_a_training_step_reads_no_value(name: str) -> None:
    module, x = a_module(name), inputs(5, SHAPE[0], torch.float32).requires_grad_()
    with NoReads():
        y = module(x)
        y.square().sum().backward()
    assert y.shape == (5, SHAPE[1])
    trained = [p for p in module.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)
    assert (x.grad is None) == (name == "pq"), "no gradient passes through a hash"


@pytest.mark.parametrize("name", FREE)
def test_a_compiled_call_reads_no_size(name: str) -> None:
    torch._dynamo.reset()
    module, x = a_module(name), inputs(5, SHAPE[0], torch.float32).requires_grad_()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    expected: Tensor = module(x)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), expected)
    y = compiled(x)
    y.sum().backward()
    torch.testing.assert_close(y, expected)
    assert y.shape == (5, SHAPE[1])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_call_on_a_device_never_waits_for_it(name: str, fake_cuda: FakeCuda) -> None:
    linear, seen = nn.Linear(12, 16).to("cuda"), inputs(64, 12, torch.float32)  # the samples stay on the CPU
    module = bs.StructuredLinear.from_linear(linear, name, SPECS[name], seen)
    assert {tensor.device for tensor in module.params.values()} == {torch.device("cuda:0")}
    x = seen[:5].to("cuda")
    for kernel in ("reference", "torch"):
        module.use(kernel)
        with torch.no_grad():
            module(x)  # packs
            with fake_cuda.synchronization_raises():
                assert module(x).shape == (5, 16)
    trained = [p for p in module.parameters() if p.requires_grad]
    with fake_cuda.synchronization_raises():  # not backward(): the double accumulates transposed gradients on the CPU
        torch.autograd.grad(module(x).square().sum(), trained)
