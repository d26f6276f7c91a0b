"""Solves with positive semidefinite matrices: in place, with the least ridge, and by steps."""

import pytest
import torch
from peak import measured

from basis_search.families.stl.linear_solvers import conjugate_gradients, divide, factor

pytestmark = pytest.mark.fast


def semidefinite(side, rank, dtype=torch.float64, seed=0):
    half = torch.randn(side, rank, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return half @ half.T / rank


@pytest.mark.parametrize(("dtype", "gap"), [(torch.float32, 1e-3), (torch.float64, 1e-11)])
def test_a_factor_divides(dtype, gap):
    A = semidefinite(40, 80, dtype)
    X = torch.randn(40, 3, generator=torch.Generator().manual_seed(1), dtype=dtype)
    assert torch.allclose(divide(factor(A.clone), A @ X), X, rtol=gap, atol=gap)


def test_the_ridge_grows_until_the_matrix_passes_and_a_singular_system_is_still_solved():
    made = []
    A = semidefinite(60, 5)
    A.diagonal()[3] -= 1e-9 * A.diagonal().mean()

    def make():
        made.append(1)
        return A.clone()

    L = factor(make)
    assert len(made) > 1
    B = A @ torch.randn(60, 2, generator=torch.Generator().manual_seed(1), dtype=A.dtype)
    assert torch.linalg.norm(A @ divide(L, B) - B) < 1e-4 * torch.linalg.norm(B)


def test_nothing_comes_of_no_matrix():
    assert factor(lambda: torch.zeros(4, 4)) is None
    assert torch.equal(divide(None, torch.ones(4, 2)), torch.zeros(4, 2))


def test_factorising_and_dividing_copies_nothing_of_the_matrix():
    """A 4096 -> 11008 layer has a normal matrix of 2.4 GB; one copy of it, or of its factor, is one too many."""
    side = 2400
    B = torch.randn(side, 8, generator=torch.Generator().manual_seed(0))

    def make():
        A = torch.full((side, side), 0.5)
        A.diagonal().fill_(2.0)
        return A

    divide(factor(lambda: make()[:600, :600].contiguous()), B[:600])  # threads and buffers of the libraries
    with measured() as spent:
        X = divide(factor(make), B)
    assert spent.bytes < 1.5 * side * side * 4
    assert torch.allclose(make() @ X, B, atol=1e-3)


@pytest.mark.parametrize("condition", [1e1, 1e4])
def test_steps_reach_the_solution(condition):
    side = 50
    axes = torch.linalg.qr(semidefinite(side, side))[0]
    A = axes * torch.logspace(0, -torch.tensor(condition).log10(), side, dtype=torch.float64) @ axes.T
    B = torch.randn(side, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    B[:, 2] = 0  # a column that is solved before it begins
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

    def left(X):
        return whole - float((X * (2 * B - A @ X)).sum())

    forms = [left(conjugate_gradients(multiply, precondition, B, whole, steps, 0.0)) for steps in (1, 2, 4, 8)]
    assert all(after < before for before, after in zip([whole, *forms], forms, strict=False))
    products.clear()
    conjugate_gradients(multiply, precondition, B, whole, 400, 0.05)
    assert len(products) < 20  # ended by what a step gains
