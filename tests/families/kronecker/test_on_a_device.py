"""Factorisation on the test double of a GPU: the CPU's results within rounding, few reads, bounded intermediates."""

from __future__ import annotations

import pytest
import torch
from pretend_cuda import pretend_cuda
from torch import Tensor

from basis_search.families import kronecker
from basis_search.families.kronecker import KroneckerChain, alternating_least_squares, blocks, hierarchy, output_error
from basis_search.layers.layer import Layer

CHAINS = ("(1,6,16,16)*(8,32,8,1)", "(1,4,4,24)*(4,6,4,4)*(16,4,4,1)", "(1,96,64,1)")


def a_layer(out: int = 96, features: int = 64) -> Layer:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(500, features, generator=draw) @ torch.randn(features, features, generator=draw) + 1
    weight, bias = torch.randn(out, features, generator=draw), torch.randn(out, generator=draw)
    return Layer("l", weight, bias, x[:400], x[400:], 8)


def product(params: dict[str, Tensor], chain: str) -> Tensor:
    factors = [params[f"factor_{index}"].cpu().double() for index in range(chain.count("*") + 1)]
    return blocks.dense(blocks.fuse_all(factors))


@pytest.mark.parametrize("chain", CHAINS)
def test_a_fit_agrees_with_the_cpus_and_reads_little(chain: str) -> None:
    spec, layer = kronecker.Spec(chain), a_layer()
    want, predicted = kronecker.fit(spec, layer), kronecker.forecast(spec, layer)
    with pretend_cuda() as cuda:
        moved = layer.to("cuda").on_device()
        before = cuda.synchronizations
        params = kronecker.fit(spec, moved)
        assert cuda.synchronizations - before <= 40  # it read a value for each step of each factor, and more
        assert {t.device.type for t in params.values()} == {"cuda"}
        assert kronecker.forecast(spec, moved).error == pytest.approx(predicted.error, rel=1e-5)
        found = {name: t.cpu() for name, t in params.items()}
    scale = product(want, chain).norm()
    assert float((product(found, chain) - product(want, chain)).norm() / scale) <= 1e-5
    torch.testing.assert_close(found["bias"], want["bias"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chain", CHAINS)
def test_small_parts_give_the_same_factors(chain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, layer = kronecker.Spec(chain), a_layer()
    whole = product(kronecker.fit(spec, layer), chain)
    sizes = []
    apply_last = blocks.apply_last

    def counted(w: Tensor, x: Tensor) -> Tensor:
        y = apply_last(w, x)
        sizes.append(y.numel())
        return y

    for module in (alternating_least_squares, output_error):
        monkeypatch.setattr(module, "MOST_VALUES", 2048)
    monkeypatch.setattr(blocks, "apply_last", counted)
    assert float((product(kronecker.fit(spec, layer), chain) - whole).norm() / whole.norm()) <= 1e-5
    assert max(sizes) <= 2048  # 256 x 64 values without parts


@pytest.mark.parametrize("rank", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_gram_schmidt_keeps_the_product_and_is_orthonormal(dtype: torch.dtype, rank: int) -> None:
    u = torch.randn(7, 8, rank, dtype=dtype, generator=torch.Generator().manual_seed(0))
    u[0, :, -1] = u[0, :, 0]  # dependent
    u[1] = 0
    q, triangle = hierarchy._gram_schmidt(u)
    torch.testing.assert_close(q @ triangle, u, rtol=1e-13, atol=1e-13)
    gram = q.mH @ q
    lengths = gram.diagonal(dim1=1, dim2=2).real
    torch.testing.assert_close(gram, torch.diag_embed(lengths).to(dtype), rtol=0, atol=1e-14)
    assert bool((((lengths - 1).abs() < 1e-13) | (lengths == 0)).all())
    assert bool((lengths[2:] > 0.5).all())


def test_chains_are_chosen_by_one_read_of_their_bounds() -> None:
    matrix = torch.randn(32, 32, generator=torch.Generator().manual_seed(0)).double()
    chains = [KroneckerChain.monarch(32, 32, p, q) for p in (4, 8) for q in (4, 8)]
    want = kronecker.choose_chain(matrix, chains, 1e9, lambda p: float(p.nnz))
    with pretend_cuda():
        found = kronecker.choose_chain(matrix.to("cuda"), chains, 1e9, lambda p: float(p.nnz))
        assert found.factorization.factors[0].device.type == "cuda"
    assert (found.chain, found.factorized) == (want.chain, want.factorized)
    assert found.factorization.error == pytest.approx(want.factorization.error, rel=1e-9)


@pytest.mark.parametrize("chain", ["(1,6,16,16)*(8,32,8,1)", "(1,7,8,16)*(8,16,9,1)"])
def test_the_torch_kernel_is_one_graph(chain: str) -> None:
    spec, layer = kronecker.Spec(chain), a_layer()
    kernel = next(k for k in kronecker.KERNELS if k.name == "torch")
    packed = kernel.pack(spec, kronecker.fit(spec, layer))
    compiled = torch.compile(lambda x: kernel.run(spec, packed, x), fullgraph=True, backend="eager")
    assert torch.equal(compiled(layer.held_out), kernel.run(spec, packed, layer.held_out))
