"""Solvers of A X = B for positive definite A: in-place Cholesky, X = L^-T L^-1 B, and conjugate gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Products of float32 matrices on a GPU are not rounded to 10 bits inside, whatever the program has set."""
    settings = torch.backends.cuda.matmul
    # torch 2.9 replaced the one by the other, and refuses a mixture.
    name, exact = ("fp32_precision", "ieee") if hasattr(settings, "fp32_precision") else ("allow_tf32", False)
    before = getattr(settings, name)
    setattr(settings, name, exact)
    try:
        yield
    finally:
        setattr(settings, name, before)


def ridge_cholesky(make: Callable[[], Tensor]) -> Tensor | None:
    """L with L L^T = A + ridge, for positive semidefinite A = make() and the smallest ridge that works; None for A = 0.

    A copy of A would double the memory of a wide layer, so A is factorised in place, and made again for a larger ridge.
    """
    times = 16
    while True:
        A = make().mT  # column-major, for LAPACK; A is symmetric
        scale = A.diagonal().mean()
        A.diagonal().add_(times * torch.finfo(A.dtype).eps * scale)
        failed = torch.empty((), dtype=torch.int32, device=A.device)
        torch.linalg.cholesky_ex(A, out=(A, failed))
        empty, bad = torch.stack([scale <= 0, failed > 0]).tolist()  # one wait for a GPU
        if empty:
            return None
        if not bad:
            return A
        times *= 10
        del A


def solve_cholesky(L: Tensor | None, B: Tensor) -> Tensor:
    """L^-T L^-1 B, zeros for None; `torch.cholesky_solve` would copy L."""
    if L is None:
        return torch.zeros_like(B)
    solution: Tensor = torch.linalg.solve_triangular(L.mT, torch.linalg.solve_triangular(L, B, upper=False), upper=True)
    return solution


def conjugate_gradients(
    multiply: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
    B: Tensor,
    whole: float,
    steps: int,
    least_gain: float,
) -> Tensor:
    """X [n, columns] ~ A^-1 B, with separate step lengths per column (Hestenes and Stiefel 1952).

    Every step lowers the quadratic form `whole` - 2 B X + X A X, the squared error of the least-squares problem with
    normal matrix A. Ends after `steps`, or when a step lowers the form by less than `least_gain` of itself.

    Args:
        multiply: X [n, columns] -> A X, A positive definite.
        precondition: R [n, columns] -> M^-1 R, M positive definite and close to A.
        whole: value of the form at X = 0.
    """
    X, R = torch.zeros_like(B), B.clone()
    direction = precondition(R)
    product = _columns(R, direction)
    left = whole
    for step in range(steps):
        changed = multiply(direction)
        curvature = _columns(direction, changed)
        # A solved column has no residual and no direction: it does not change.
        length = torch.where(curvature > 0, product / curvature.clamp_min(torch.finfo(B.dtype).tiny), 0)
        X.addcmul_(direction, length)
        R.addcmul_(changed, length, value=-1)
        del changed
        gain = float((length * product).sum(dtype=torch.float64))
        left -= gain
        if step + 1 == steps or gain <= least_gain * left:
            break
        solved = precondition(R)
        new = _columns(R, solved)
        direction.mul_(torch.where(product > 0, new / product.clamp_min(torch.finfo(B.dtype).tiny), 0)).add_(solved)
        product = new
    return X


def coupled_conjugate_gradients(
    multiply: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
    X: Tensor,
    R: Tensor,
    left: float,
    limits: tuple[int, float, int],
) -> tuple[Tensor, Tensor]:
    """Better X ~ A^-1 B from a start with residual R = B - A X, for an A that couples all entries; and its residual.

    Args:
        multiply, precondition: as of `conjugate_gradients`, for tensors of any shape.
        left: value of the quadratic form at the start, which every step lowers.
        limits: most steps; the gain per step, relative to the form, below which they end; steps per reading of it.
    """
    steps, least_gain, every = limits
    tiny = torch.finfo(R.dtype).tiny
    X, R = X.clone(), R.clone()
    direction = precondition(R)
    product = (R * direction).sum()
    gain = torch.zeros((), dtype=torch.float64, device=R.device)
    for step in range(1, steps + 1):
        changed = multiply(direction)
        curvature = (direction * changed).sum()
        length = torch.where(curvature > 0, product / curvature.clamp_min(tiny), 0)
        X.addcmul_(direction, length)
        R.addcmul_(changed, length, value=-1)
        gain += length * product
        if step == steps:
            break
        if step % every == 0:
            read = float(gain)
            left -= read
            if read <= every * least_gain * left:
                break
            gain.zero_()
        solved = precondition(R)
        new = (R * solved).sum()
        direction = solved.addcmul_(direction, torch.where(product > 0, new / product.clamp_min(tiny), 0))
        product = new
    return X, R


def _columns(A: Tensor, B: Tensor) -> Tensor:
    """Inner products column by column."""
    return torch.einsum("nj,nj->j", A, B)
