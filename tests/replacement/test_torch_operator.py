"""StructuredLinear with torch's tools: opcheck, compile, export, autocast, DDP, and torch.save of the module."""

from __future__ import annotations

import gc
import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pretend_cuda import pretend_cuda
from small_specs import SPECS
from torch import nn

import basis_search as bs
from basis_search.replacement import torch_operator
from basis_search.replacement.structure import cast


@pytest.fixture(autouse=True)
def forgotten() -> None:
    """Forgets what other tests compiled: torch runs code in which a call has failed eagerly, or not at all."""
    torch._dynamo.reset()


def an_input(*lead: int) -> torch.Tensor:
    return torch.randn(*(lead or (6,)), 12, generator=torch.Generator().manual_seed(5))


def a_module(family: str) -> bs.StructuredLinear:
    torch.manual_seed(0)
    layer = bs.Layer.from_linear(nn.Linear(12, 16), an_input(256))
    return bs.fit(layer, family, SPECS[family])


def tensors_and_text(module: bs.StructuredLinear) -> tuple[list[torch.Tensor], str]:
    return list(module.params.values()), module._text


@pytest.mark.parametrize("family", SPECS)
def test_the_operator_passes_opcheck(family: str) -> None:
    module = a_module(family)
    tensors, text = tensors_and_text(module)
    plain = [t.detach() for t in tensors]
    for x, given in ((an_input(), plain), (an_input(2, 3), plain), (an_input(4).requires_grad_(), tensors)):
        torch.library.opcheck(torch.ops.basis_search.structured_linear.default, (x, given, text, None))
    wanted = [True, *(t.requires_grad for t in tensors)]
    torch.library.opcheck(
        torch.ops.basis_search.structured_linear_backward.default,
        (torch.randn(4, 16), an_input(4), plain, wanted, text, None),
    )


@pytest.mark.parametrize("family", SPECS)
def test_compiled_without_a_graph_break(family: str) -> None:
    model = nn.Sequential(nn.LayerNorm(12), a_module(family), nn.GELU()).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.no_grad():
        for rows in (6, 9):
            x = an_input(2, rows)
            torch.testing.assert_close(compiled(x), model(x))
        before = compiled(x)
        floating = [t for t in model[1].params.values() if t.is_floating_point() and t.ndim][-1]
        floating.add_(1.0)  # parameters are packed again after a change in place
        torch.testing.assert_close(compiled(x), model(x))
        assert not torch.equal(compiled(x), before)


@pytest.mark.parametrize("family", SPECS)
def test_compiled_training_has_the_same_gradients(family: str) -> None:
    gradients = []
    for compiled in (False, True):
        module = a_module(family)
        run = torch.compile(module, fullgraph=True, backend="aot_eager") if compiled else module
        x = an_input(8).requires_grad_()
        run(x).square().sum().backward()
        named = {n: p.grad for n, p in module.named_parameters() if p.requires_grad}
        gradients.append({**named, "x": x.grad if x.grad is not None else torch.zeros_like(x)})
    eager, traced = gradients
    assert eager.keys() == traced.keys()
    for name, expected in eager.items():
        assert expected is not None, f"{family} trains {name}, but no gradient reaches it"
        torch.testing.assert_close(traced[name], expected, rtol=1e-4, atol=1e-5)


def test_compiled_by_inductor() -> None:
    model = nn.Sequential(a_module("stl"), nn.GELU(), nn.Linear(16, 4)).eval()
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(an_input()), model(an_input()), rtol=1e-5, atol=1e-5)


def test_a_forced_kernel_without_gradients_is_refused_when_compiled_too() -> None:
    compiled = torch.compile(a_module("int8").use("reference"), backend="aot_eager")
    with pytest.raises(bs.BadInput, match="gives no gradients"):
        compiled(an_input().requires_grad_())


def test_packed_parameters_are_freed_with_their_module() -> None:
    module = a_module("int8").use("torch")
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    tensors, text = tensors_and_text(module)

    def alive() -> int:
        return torch_operator.packed.alive(text)

    with torch.no_grad():
        compiled(an_input())
        assert alive() == 1
        assert torch.equal(compiled(an_input()), module(an_input()))
        assert alive() == 1
    del module, compiled, tensors
    torch._dynamo.reset()
    gc.collect()
    assert alive() == 0


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("family", ["lowrank", "int8"])
def test_parameters_are_packed_again_when_their_storage_is_another(family: str, compiled: bool) -> None:
    """module.half().float() assigns .data: the same tensor object with the same version and other values."""
    module = a_module(family).use("torch")
    run = torch.compile(module, fullgraph=True, backend="eager") if compiled else module
    with torch.no_grad():
        before = run(an_input())
        for tensor in module.params.values():
            if tensor.is_floating_point():
                tensor.data = 2 * tensor.data
        after = run(an_input())
        assert not torch.allclose(after, before)
        torch.testing.assert_close(after, module.use("reference")(an_input()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", SPECS)
def test_exported_and_run_in_another_process(family: str, tmp_path: Path) -> None:
    model = nn.Sequential(a_module(family), nn.GELU()).eval()
    rows = torch.export.Dim("rows", min=2, max=64)
    with torch.no_grad():
        program = torch.export.export(model, (an_input(),), dynamic_shapes=({0: rows},))
        expected = model(an_input(9))
        torch.testing.assert_close(program.module()(an_input(9)), expected)
    if family != "lowrank":  # the slow half runs for one family
        return
    torch.export.save(program, tmp_path / "model.pt2")
    torch.save({"x": an_input(9), "y": expected}, tmp_path / "io.pt")
    code = (
        "import torch, basis_search.replacement.torch_operator\n"
        f"program = torch.export.load({str(tmp_path / 'model.pt2')!r})\n"
        f"io = torch.load({str(tmp_path / 'io.pt')!r})\n"
        "torch.testing.assert_close(program.module()(io['x']), io['y'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("family", SPECS)
def test_under_autocast_it_runs_as_if_converted(family: str, compiled: bool) -> None:
    module, x = a_module(family), an_input()
    converted = a_module(family).bfloat16()
    run = torch.compile(module, fullgraph=True, backend="aot_eager") if compiled else module
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            y = run(x)
            assert nn.Linear(12, 16)(x).dtype == y.dtype == torch.bfloat16
        assert torch.equal(y, converted(x.bfloat16()))
        assert run(x).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        loss = run(x).float().square().mean()
    loss.backward()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.dtype == torch.float32


def test_cast_leaves_integers_alone() -> None:
    tensors = {"a": torch.ones(2), "b": torch.ones(2, dtype=torch.int8)}
    assert {n: t.dtype for n, t in cast(tensors, torch.bfloat16).items()} == {"a": torch.bfloat16, "b": torch.int8}
    assert cast(tensors, None)["a"] is tensors["a"]


def test_a_module_made_in_inference_mode_runs() -> None:
    with torch.inference_mode():
        module = a_module("lowrank")
        inside = module(an_input())
    with torch.no_grad():
        assert torch.equal(module(an_input()), inside)


@pytest.mark.parametrize("family", SPECS)
def test_the_whole_module_is_saved_and_loaded(family: str) -> None:
    model, file = nn.Sequential(a_module(family), nn.GELU()).eval(), io.BytesIO()
    with torch.no_grad():
        expected = model(an_input())
        torch.save(model, file)
        file.seek(0)
        assert torch.equal(torch.load(file, weights_only=False)(an_input()), expected)


def test_distributed_data_parallel_trains_every_family(tmp_path: Path) -> None:
    code = f"""
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
import sys
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1] / "support")]!r}
from test_torch_operator import SPECS, a_module, an_input
torch.distributed.init_process_group("gloo", init_method="file://{tmp_path}/meet", rank=0, world_size=1)
for family in SPECS:
    model = nn.Sequential(a_module(family), nn.Linear(16, 4))  # no gradient passes a hash, so it comes first
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=1e-2)
    before = [p.detach().clone() for p in model[0].parameters() if p.requires_grad]
    for _ in range(3):  # parameters without gradients would raise from the second step on
        optimizer.zero_grad()
        wrapped(an_input().requires_grad_()).square().mean().backward()
        optimizer.step()
    after = [p for p in model[0].parameters() if p.requires_grad]
    assert after and all(not torch.equal(a, b) for a, b in zip(before, after, strict=True)), family
    with torch.no_grad():
        assert torch.equal(wrapped(an_input()), model(an_input())), family
torch.distributed.destroy_process_group()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_stays_on_the_device_in_a_graph_of_torch_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch refuses what outlives the first call, which runs in the graph's memory; replays see changed parameters."""
    manager = SimpleNamespace(in_warmup=True)
    trees = SimpleNamespace(
        local=SimpleNamespace(tree_manager_containers={}), get_manager=lambda index, create_if_none_exists: manager
    )
    with pretend_cuda(), torch.no_grad():
        monkeypatch.setitem(sys.modules, "torch._inductor.cudagraph_trees", trees)
        module, x = a_module("int8").use("torch").to("cuda"), an_input().to("cuda")
        tensors, text = tensors_and_text(module)

        def run() -> torch.Tensor:
            return torch_operator.structured_linear(x, tensors, text, None)

        warmed = run()
        assert torch_operator.packed.alive(text) == 0
        manager.in_warmup = False
        assert torch.equal(run(), warmed)
        assert torch_operator.packed.alive(text) == 1
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = run()
        tensors[1].mul_(2)  # the scale
        graph.replay()
        torch.testing.assert_close(y.cpu(), run().cpu())
