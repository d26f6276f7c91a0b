"""Alternating least squares for bases: min over E, D and w of E || Y_IJ - D sum_K (E vec X_IK) * w_KJ ||^2."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from basis_search.families.stl.metric_equations import MOST_STEPS
from basis_search.families.stl.normal_equations import TileProblem

ALTERNATIONS = 6
"""Alternations of D and E per solve for the encoded weights, whose system is much larger."""
LEAST_GAIN = 3e-3
"""Sweeps end when one lowers the error by less than this fraction."""
PROXIMAL_WEIGHT = 1e-3
"""Weight of the distance to the previous bases, relative to the normal matrix: bounds undetermined steps."""


def adapt(problem: TileProblem, E: Tensor, D: Tensor, sweeps: int) -> tuple[Tensor, Tensor, Tensor]:
    """(E [r, n k], D [n m, r], encoded weights [r, K, J]) after at most `sweeps` rounds; never worse than without."""
    return adapt_in_steps(problem, E, D, sweeps, MOST_STEPS)[:3]


def adapt_in_steps(
    problem: TileProblem, E: Tensor, D: Tensor, sweeps: int, steps: int
) -> tuple[Tensor, Tensor, Tensor, float]:
    """`adapt` with a limit on the steps of a solve in an output metric, and the error over the problem's scale."""
    encoded, loss = problem.solve(E, D, steps)
    best, least = (E, D, encoded), loss
    scaled, gains = _scaled(problem)
    for _ in range(sweeps):
        E, D = _bases_step(scaled, E, D, encoded if gains is None else encoded * gains)
        encoded, new = problem.solve(E, D, steps)
        if not new < loss:
            break
        best, least, gain, loss = (E, D, encoded), new, loss - new, new
        if gain < LEAST_GAIN * loss:
            break
    return *best, least


def _scaled(problem: TileProblem) -> tuple[TileProblem, Tensor | None]:
    """The plain problem whose tiles J of outputs are scaled by the roots [J] of the metric's mean diagonal there.

    In it the bases' least squares weigh tiles as the metric does; what it couples, the encoded weights make up for.
    """
    if problem.metric is None:
        return problem, None
    m = problem.sides[2]
    gains = problem.metric.diagonal().view(-1, m).mean(1).sqrt()
    weight = problem.weight * gains.repeat_interleave(m)[:, None]
    return replace(problem, weight=weight, metric=None), gains


def _bases_step(problem: TileProblem, E: Tensor, D: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """D and E in turn, each the least-squares solution for the other and for the encoded weights w [r, K, J]."""
    r, (n, k, m) = len(E), problem.sides
    # Q[l, l', p, p'] = sum over K, K', J of w_lKJ covariance[Kp, K'p'] w_l'K'J; likewise for targets and means.
    Q = torch.empty(r, r, k, k, dtype=E.dtype, device=E.device)
    K, J = w.shape[1:]
    flat = w.permute(2, 1, 0).reshape(J * K, r)  # [J K', l']
    wide = problem.covariance.view(K, k, K * k)  # [K, p, K' p']
    for row in range(r):
        G = w[row].T @ wide.reshape(K, k * K * k)  # [J, p K' p']
        G = G.view(J, k, K, k).permute(1, 3, 0, 2).reshape(k * k, J * K)
        Q[row] = (G @ flat).T.view(r, k, k)
    target = torch.einsum("lKJ,KpJq->lpq", w, problem.cross)
    h = torch.einsum("lKJ,Kp->lpJ", w, problem.mean.view(K, k))
    mean_out = problem.mean_out.view(J, m)

    e, d = E.view(r, n, k), D.view(n, m, r)  # [l, i, p], [i, q, l]
    for _ in range(ALTERNATIONS):
        d = _decoder(problem.free_bias, e, d, Q, target, h, mean_out)
        e = _encoder(problem.free_bias, e, d, Q, target, h, mean_out)
    # Restore the norms of the terms: the weights, which are solved for next, absorb the scale.
    e = e * (E.norm(dim=1) / e.flatten(1).norm(dim=1).clamp_min(1e-300))[:, None, None]
    d = d * (D.norm(dim=0) / d.flatten(0, 1).norm(dim=0).clamp_min(1e-300))
    return e.reshape(r, n * k), d.reshape(n * m, r)


def _decoder(free: bool, e: Tensor, d: Tensor, Q: Tensor, target: Tensor, h: Tensor, mean_out: Tensor) -> Tensor:
    """D [i, q, l] for E [l, i, p]; with a free bias only differences of the mean between a tile's rows count."""
    A = torch.einsum("lip,lkpr,kir->lk", e, Q, e)
    s = torch.einsum("lip,lpJ->lJ", e, h)
    B = torch.einsum("lip,lpq->iql", e, target)
    full = A + s @ s.T
    if not free:
        return _proximal_solve(full, B + (mean_out.T @ s.T)[None], d)
    level = B.mean(dim=0, keepdim=True)
    old = d.mean(dim=0, keepdim=True)
    return _proximal_solve(A, level, old) + _proximal_solve(full, B - level, d - old)


def _proximal_solve(A: Tensor, B: Tensor, old: Tensor) -> Tensor:
    """X [..., r] with X A = B, regularised towards `old`; A [r, r] symmetric."""
    weight = PROXIMAL_WEIGHT * A.diagonal().mean() + 1e-300
    damped = A + weight * torch.eye(len(A), dtype=A.dtype, device=A.device)
    shape = B.shape
    right = (B + weight * old).reshape(-1, shape[-1])
    return _solve(damped, right.T).T.reshape(shape)


def _solve(damped: Tensor, right: Tensor) -> Tensor:
    """X with `damped` X = `right`; a damped normal matrix is positive definite, so nothing is checked."""
    return torch.cholesky_solve(right, torch.linalg.cholesky_ex(damped).L)


def _encoder(free: bool, e: Tensor, d: Tensor, Q: Tensor, target: Tensor, h: Tensor, mean_out: Tensor) -> Tensor:
    """E [l, i, p] for D [i, q, l]."""
    r, n, k = e.shape
    gram = torch.einsum("iql,iqk->lk", d, d)
    shared = d - d.mean(dim=0) if free else d
    gram_shared = torch.einsum("iql,iqk->lk", shared, shared)
    N = torch.zeros(r, n, k, r, n, k, dtype=e.dtype, device=e.device)  # [l, i, p, l', i', p']
    same = torch.einsum("lk,lkpr->lpkr", gram, Q)
    for i in range(n):
        N[:, i, :, :, i, :] = same
    N += torch.einsum("lk,lpJ,krJ->lpkr", gram_shared, h, h)[:, None, :, :, None, :]
    right = torch.einsum("iql,lpq->lip", d, target)
    if not free:
        right = right + torch.einsum("iql,Jq,lpJ->lp", d, mean_out, h)[:, None, :]
    flat = N.view(r * n * k, r * n * k)
    weight = PROXIMAL_WEIGHT * flat.diagonal().mean() + 1e-300
    flat.diagonal().add_(weight)
    return _solve(flat, (right + weight * e).reshape(-1, 1)).view(r, n, k)
