"""Solvers for positive semidefinite matrices: Cholesky in place with a ridge, and conjugate gradients."""

import pytest
import torch
from peak import measured

from basis_search.families.stl.linear_solvers import conjugate_gradients, ridge_cholesky, solve_cholesky, without_tf32

pytestmark = pytest.mark.fast


def semidefinite(side, rank, dtype=torch.float64, seed=0):
    half = torch.randn(side, rank, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return half @ half.T / rank


@pytest.mark.parametrize(("dtype", "gap"), [(torch.float32, 1e-3), (torch.float64, 1e-11)])
def test_cholesky_solves(dtype, gap):
    A = semidefinite(40, 80, dtype)
    X = torch.randn(40, 3, generator=torch.Generator().manual_seed(1), dtype=dtype)
    assert torch.allclose(solve_cholesky(ridge_cholesky(A.clone), A @ X), X, rtol=gap, atol=gap)


def test_the_ridge_grows_until_a_singular_system_is_solved():
    made = []
    A = semidefinite(60, 5)
    A.diagonal()[3] -= 1e-9 * A.diagonal().mean()

    def make():
        made.append(1)
        return A.clone()

    L = ridge_cholesky(make)
    assert len(made) > 1
    B = A @ torch.randn(60, 2, generator=torch.Generator().manual_seed(1), dtype=A.dtype)
    assert torch.linalg.norm(A @ solve_cholesky(L, B) - B) < 1e-4 * torch.linalg.norm(B)


def test_a_zero_matrix_gives_zeros():
    assert ridge_cholesky(lambda: torch.zeros(4, 4)) is None
    assert torch.equal(solve_cholesky(None, torch.ones(4, 2)), torch.zeros(4, 2))


def test_factorising_and_solving_make_no_copy_of_the_matrix():
    """A 4096 -> 11008 layer has a normal matrix of 2.4 GB; not even one copy of it or of its factor fits."""
    side = 2400
    B = torch.randn(side, 8, generator=torch.Generator().manual_seed(0))

    def make():
        A = torch.full((side, side), 0.5)
        A.diagonal().fill_(2.0)
        return A

    solve_cholesky(ridge_cholesky(lambda: make()[:600, :600].contiguous()), B[:600])  # warm-up
    with measured() as spent:
        X = solve_cholesky(ridge_cholesky(make), B)
    assert spent.bytes < 1.5 * side * side * 4
    assert torch.allclose(make() @ X, B, atol=1e-3)


@pytest.mark.parametrize("condition", [1e1, 1e4])
def test_conjugate_gradients_reach_the_solution(condition):
    side = 50
    axes = torch.linalg.qr(semidefinite(side, side))[0]
    A = axes * torch.logspace(0, -torch.tensor(condition).log10(), side, dtype=torch.float64) @ axes.T
    B = torch.randn(side, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    B[:, 2] = 0  # a column that is solved from the start
    expected = torch.linalg.solve(A, B)
    whole = 1.01 * float((B * expected).sum())
    blocks = [torch.linalg.inv(A[s, s]) for s in (slice(0, 25), slice(25, 50))]

    def precondition(R):
        return torch.cat([blocks[0] @ R[:25], blocks[1] @ R[25:]])

    products = []

    def multiply(X):
        products.append(1)
        return A @ X

    X = conjugate_gradients(multiply, precondition, B, whole, 400, 1e-12)
    assert torch.allclose(X, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert len(products) < 150

    def form_at(X):
        return whole - float((X * (2 * B - A @ X)).sum())

    forms = [form_at(conjugate_gradients(multiply, precondition, B, whole, steps, 0.0)) for steps in (1, 2, 4, 8)]
    assert all(after < before for before, after in zip([whole, *forms], forms, strict=False))
    products.clear()
    conjugate_gradients(multiply, precondition, B, whole, 400, 0.05)
    assert len(products) < 20  # ended by the small gain of a step


def test_a_programs_choice_of_tf32_is_kept_and_not_used_inside():
    settings = torch.backends.cuda.matmul
    before = settings.allow_tf32
    try:
        settings.allow_tf32 = True
        with without_tf32():
            inside = settings.fp32_precision if hasattr(settings, "fp32_precision") else settings.allow_tf32
        assert inside in ("ieee", False)
        assert settings.allow_tf32
    finally:
        settings.allow_tf32 = before
