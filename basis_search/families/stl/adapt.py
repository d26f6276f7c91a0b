"""Bases fitted to a layer: min over E, D and w of E || Y_IJ - D sum_K (E vec X_IK) * w_KJ ||^2, in turn."""

from __future__ import annotations

import torch
from torch import Tensor

from basis_search.families.stl.normal_equations import Problem

INNER = 6
"""Alternations of D and E for one set of encoded weights: these systems are small, that of the weights is not."""
LEAST_GAIN = 3e-3
"""Relative fall of the error below which a sweep ends the search."""
HOLD = 1e-3
"""Weight of staying near the last bases, relative to the normal matrix: bounds the step where inputs say nothing."""


def adapt(problem: Problem, E: Tensor, D: Tensor, sweeps: int) -> tuple[Tensor, Tensor, Tensor]:
    """(E [r, n k], D [n m, r], encoded weights [r, K, J]) after at most `sweeps` rounds; never worse than unadapted."""
    encoded, loss = problem.solve(E, D)
    best = (E, D, encoded)
    for _ in range(sweeps):
        E, D = _bases_step(problem, E, D, encoded)
        encoded, new = problem.solve(E, D)
        if not new < loss:
            break
        best, gain, loss = (E, D, encoded), loss - new, new
        if gain < LEAST_GAIN * loss:
            break
    return best


def _bases_step(problem: Problem, E: Tensor, D: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """D and E in turn, each the least-squares solution for the other and for the encoded weights w [r, K, J]."""
    r, (n, k, m) = len(E), problem.sides
    # Q[l, l', p, p'] = sum over K, K', J of w_lKJ covariance[Kp, K'p'] w_l'K'J, and its kin for targets and means.
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
    for _ in range(INNER):
        d = _decoder(problem.free_bias, e, d, Q, target, h, mean_out)
        e = _encoder(problem.free_bias, e, d, Q, target, h, mean_out)
    # The size of each term belongs to the weights, which are solved for anew.
    e = e * (E.norm(dim=1) / e.flatten(1).norm(dim=1).clamp_min(1e-300))[:, None, None]
    d = d * (D.norm(dim=0) / d.flatten(0, 1).norm(dim=0).clamp_min(1e-300))
    return e.reshape(r, n * k), d.reshape(n * m, r)


def _decoder(free: bool, e: Tensor, d: Tensor, Q: Tensor, target: Tensor, h: Tensor, mean_out: Tensor) -> Tensor:
    """D [i, q, l] for E [l, i, p]; with a free bias the mean counts only where it differs between a tile's rows."""
    A = torch.einsum("lip,lkpr,kir->lk", e, Q, e)
    s = torch.einsum("lip,lpJ->lJ", e, h)
    B = torch.einsum("lip,lpq->iql", e, target)
    full = A + s @ s.T
    if not free:
        return _held(full, B + (mean_out.T @ s.T)[None], d)
    level = B.mean(dim=0, keepdim=True)
    old = d.mean(dim=0, keepdim=True)
    return _held(A, level, old) + _held(full, B - level, d - old)


def _held(A: Tensor, B: Tensor, old: Tensor) -> Tensor:
    """X with X A = B, held near `old`: [..., r] rows, A [r, r] symmetric."""
    hold = HOLD * float(A.diagonal().mean()) + 1e-300
    held = A + hold * torch.eye(len(A), dtype=A.dtype, device=A.device)
    shape = B.shape
    right = (B + hold * old).reshape(-1, shape[-1])
    solution: Tensor = torch.linalg.solve(held, right.T)
    return solution.T.reshape(shape)


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
    hold = HOLD * float(flat.diagonal().mean()) + 1e-300
    flat.diagonal().add_(hold)
    solution: Tensor = torch.linalg.solve(flat, (right + hold * e).flatten())
    return solution.view(r, n, k)
