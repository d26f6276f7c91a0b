"""Cyclic Jacobi rotations of many matrices: residuals and orthogonality at rounding, on the test double of a GPU."""

from __future__ import annotations

import pytest
import torch
from pretend_cuda import pretend_cuda

from basis_search.families.protocol import batched_eigh, batched_eigvalsh
from basis_search.families.protocol.eigenvectors import FEWEST_MATRICES, MOST_SWEEPS


def gram_matrices(n: int) -> torch.Tensor:
    """[B, n, n]: a zero matrix, one of rank 1, a diagonal one, singular values over 12 decades, equal ones, random."""
    draw = torch.Generator().manual_seed(n)
    x = torch.randn(FEWEST_MATRICES, n, n + 3, generator=draw, dtype=torch.float64)
    x[0], x[1], x[2, :, 1:] = 0, 1, 0
    x[3] *= torch.logspace(0, -12, n, dtype=torch.float64)[:, None]
    gram = x @ x.mT
    gram[4] = torch.eye(n, dtype=torch.float64)
    gram[5] = torch.diag(torch.arange(n, 0, -1.0))
    return gram


@pytest.mark.parametrize("n", [1, 2, 3, 8, 17])
def test_rotations_give_the_eigenvectors(n: int) -> None:
    gram = gram_matrices(n)
    with pretend_cuda() as cuda:
        before = cuda.synchronizations
        values, vectors = batched_eigh(gram.to("cuda").view(4, -1, n, n))
        assert cuda.synchronizations - before <= 1 + MOST_SWEEPS  # the copy, and a read a sweep
        alone = batched_eigvalsh(gram.to("cuda")).cpu()
        values, vectors = values.cpu().view(-1, n), vectors.cpu().view(-1, n, n)
    size = gram.abs().amax((1, 2)).clamp_min(1e-300)[:, None]
    limit = 20 * n * torch.finfo(torch.float64).eps
    assert float(((values - torch.linalg.eigvalsh(gram)) / size).abs().max()) <= limit
    assert bool((values.diff(dim=1) >= 0).all())
    assert torch.equal(alone, values)
    assert float((vectors.mT @ vectors - torch.eye(n)).abs().max()) <= limit
    assert float(((vectors * values[:, None] @ vectors.mT - gram) / size[:, :, None]).abs().max()) <= limit
