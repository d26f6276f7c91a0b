"""A rotation R of the inputs before product quantisation: min over R^T R = I and codes of |X R - Q(X R)|^2.

Optimized product quantization (Ge, He, Ke and Sun, CVPR 2013): principal directions are assigned to the codebooks so
that their variances have about equal products; then centroids of X R alternate with R by an orthogonal Procrustes fit.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from basis_search.families.pq.kmeans import learn_centroids
from basis_search.families.pq.reference import encode
from basis_search.families.pq.spec import Spec, bounds

ROUNDS = 8
"""Alternations of quantising and rotating."""
MOST_ROWS = 8192
"""Most rows used, taken at a stride."""


def learn_rotation(x: Tensor, codebooks: int, rounds: int = ROUNDS) -> Tensor:
    """x [n, in] -> R [in, in] in float64, orthogonal, with the least error of all rounds. Deterministic."""
    x = x[:: -(-len(x) // MOST_ROWS)].double()
    rotation = _allocated(x, codebooks)
    best, least = rotation, torch.inf
    for _ in range(rounds):
        rotated = x @ rotation
        quantised = quantise(rotated, codebooks)
        error = float((rotated - quantised).square().sum())
        if error < least:
            best, least = rotation, error
        u, _, v = torch.linalg.svd(x.T @ quantised)
        rotation = u @ v
    return best


def quantise(x: Tensor, codebooks: int) -> Tensor:
    """Each row's groups of columns replaced by their nearest of 16 learnt centroids."""
    centroids = learn_centroids(x.float(), codebooks).double()
    codes = encode(Spec(codebooks, "kmeans"), {"centroids": centroids}, x)
    groups = itertools.pairwise(bounds(x.shape[1], codebooks))
    return torch.cat([centroids[codes[:, c], begin:end] for c, (begin, end) in enumerate(groups)], 1)


def _allocated(x: Tensor, codebooks: int) -> Tensor:
    """Principal directions by falling variance, each assigned to the codebook with room and least product so far."""
    starts = bounds(x.shape[1], codebooks)
    centred = x - x.mean(0)
    values, directions = torch.linalg.eigh(centred.T @ centred / len(x))
    floor = float(values[-1]) * 1e-6 + torch.finfo(torch.float64).tiny
    logs = values.clamp(min=floor).log().flip(0)
    logs = logs - logs[-1]  # none negative: a wider product is not a smaller one
    taken: list[list[int]] = [[] for _ in range(codebooks)]
    product = [0.0] * codebooks
    for k in range(x.shape[1]):
        c = min((c for c in range(codebooks) if len(taken[c]) < starts[c + 1] - starts[c]), key=lambda c: product[c])
        taken[c].append(k)
        product[c] += float(logs[k])
    order = [x.shape[1] - 1 - k for group in taken for k in group]
    rotation: Tensor = directions[:, order]
    return rotation
