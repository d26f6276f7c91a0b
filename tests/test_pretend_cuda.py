"""The test double of CUDA devices behaves as a CUDA device does, where a test relies on it."""

from __future__ import annotations

import copy
import io
from importlib.util import find_spec

import pytest
import torch
from pretend_cuda import FakeCuda, FakeCudaTensor, pretend_cuda
from torch import nn

pytestmark = pytest.mark.fast


def test_a_module_runs_and_learns_on_the_device_as_on_the_cpu(fake_cuda: FakeCuda) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 6))
    model[2].weight = nn.Parameter(model[0].weight.detach().T.contiguous())
    twin, x = copy.deepcopy(model), torch.randn(8, 6)
    moved = copy.deepcopy(model).to("cuda")
    for module, where in ((twin, "cpu"), (moved, "cuda:0")):
        optimizer = torch.optim.Adam(module.parameters())
        y = module(x.to(where))
        assert str(y.device) == where
        y[:, 1:].square().mean().backward()
        optimizer.step()
    for one, other in zip(twin.parameters(), moved.parameters(), strict=True):
        assert isinstance(other, nn.Parameter)
        assert isinstance(other.grad, FakeCudaTensor)
        assert torch.equal(one, other.cpu())
    assert all(t.device.type == "cuda" for t in copy.deepcopy(moved).state_dict().values())


def test_moving_a_module_keeps_tied_parameters_tied(fake_cuda: FakeCuda) -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    nn.Sequential(first, second).to("cuda")
    assert second.weight is first.weight
    assert first.weight.is_cuda


def test_gradients_cross_devices(fake_cuda: FakeCuda) -> None:
    a = torch.ones(3, requires_grad=True)
    b = torch.ones(3, device="cuda", requires_grad=True)
    ((a.to("cuda") * b).cpu() * 2).sum().backward()
    assert torch.equal(a.grad, torch.full((3,), 2.0))
    assert b.grad.device == torch.device("cuda:0")


@pytest.mark.parametrize("mix", [torch.add, torch.mul, torch.mv, lambda a, b: torch.cat([b, b, a[0]])])
def test_mixed_devices_raise(fake_cuda: FakeCuda, mix) -> None:
    a, b = torch.ones(3, 3, device="cuda"), torch.ones(3)
    with pytest.raises(RuntimeError, match="on the same device, but found at least two devices, cuda:0 and cpu"):
        mix(a, b)
    with pytest.raises(RuntimeError, match="cuda:1 and cuda:0"):
        mix(a, b.to("cuda:1"))
    with pytest.raises(RuntimeError, match="indices should be either on cpu or on the same device"):
        b[torch.tensor([1], device="cuda")]
    with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator but found 'cpu'"):
        torch.randn(3, device="cuda", generator=torch.Generator())
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        a.numpy()
    assert torch.equal((a * torch.tensor(2.0)).cpu(), torch.full((3, 3), 2.0)), "a number on the CPU goes with any"


def test_every_wait_of_the_host_counts(fake_cuda: FakeCuda) -> None:
    x = torch.arange(4.0, device="cuda")
    mask, index = x > 1, torch.tensor([1])
    assert fake_cuda.synchronizations == 0
    waits = [
        x[0].item, lambda: float(x[1]), x.cpu, x.tolist, x.nonzero, lambda: bool(mask[0]), lambda: x[mask],
        lambda: torch.linalg.eigh(x.diag()), lambda: torch.linalg.cholesky(torch.eye(3, device="cuda")),
        lambda: torch.ones(3).to("cuda"), lambda: x[index], lambda: torch.equal(x, x), lambda: range(x[1].int()),
        lambda: torch.tensor([1.0], device="cuda"), lambda: x.copy_(torch.ones(4)), lambda: f"{x[0]}",
    ]  # fmt: skip
    for wait in waits:
        before = fake_cuda.synchronizations
        wait()
        assert fake_cuda.synchronizations > before, wait
        with fake_cuda.synchronization_raises(), pytest.raises(RuntimeError, match="called a synchronizing CUDA"):
            wait()
    before = fake_cuda.synchronizations
    with torch.inference_mode():
        y = torch.nn.functional.linear(x, torch.zeros(2, 4, device="cuda"))
    x[mask] = 0.0
    x[1:], x[2] = 3.0, y[0]
    torch.linalg.cholesky_ex(torch.eye(3, device="cuda"))
    torch.full((2,), 1.0, device="cuda")
    torch.cuda.synchronize()
    assert fake_cuda.synchronizations == before, fake_cuda.waits[before:]


def test_a_graph_runs_what_was_captured_again(fake_cuda: FakeCuda) -> None:
    x, weight = torch.ones(2, 3, device="cuda"), torch.ones(4, 3, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = torch.nn.functional.linear(x, weight)
        y.add_(1)
        z = y.T[1:]
    x.fill_(2)
    graph.replay()
    assert torch.equal(z.cpu(), torch.full((3, 2), 7.0))
    with torch.cuda.graph(graph), pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        x.sum().item()


def test_a_device_is_as_large_as_it_says() -> None:
    with pretend_cuda(memory_bytes=4096):
        assert torch.cuda.mem_get_info() == (4096, 4096)
        torch.zeros(1024, device="cuda")
        with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
            torch.zeros(1025, device="cuda")


def test_two_devices_and_the_current_one(fake_cuda: FakeCuda) -> None:
    assert torch.cuda.device_count() == 2
    assert torch.cuda.get_device_properties(0).uuid != torch.cuda.get_device_properties("cuda:1").uuid
    with torch.cuda.device(1):
        assert torch.zeros(1, device="cuda").device == torch.device("cuda:1")
    assert torch.zeros(1).cuda().device == torch.device("cuda:0")
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.zeros(1, device="cuda:2")
    generator = torch.Generator("cuda").manual_seed(3)
    drawn = torch.randn(3, device="cuda", generator=generator)
    assert torch.equal(drawn.cpu(), torch.randn(3, generator=torch.Generator().manual_seed(3)))


def test_saved_tensors_load_on_a_device(fake_cuda: FakeCuda) -> None:
    file = io.BytesIO()
    torch.save({"x": torch.ones(3, device="cuda:1")}, file)
    file.seek(0)
    assert torch.load(file, weights_only=False)["x"].device == torch.device("cuda:1")


def test_nothing_is_left_outside() -> None:
    available = torch.cuda.is_available()
    with pretend_cuda():
        assert torch.cuda.is_available()
        assert find_spec("triton") is None, "Triton's kernels cannot run on the double"
    assert torch.cuda.is_available() == available
    assert isinstance(torch.Generator(), torch.Generator)
    if not available:
        with pytest.raises((RuntimeError, AssertionError)):
            torch.zeros(1, device="cuda")
