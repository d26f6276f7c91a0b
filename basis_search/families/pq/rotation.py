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
    best, least = rotation, x.new_full((), torch.inf)
    for _ in range(rounds):
        rotated = x @ rotation
        quantised = quantise(rotated, codebooks)
        error = (rotated - quantised).square().sum()
        best, least = torch.where(error < least, rotation, best), torch.minimum(error, least)
        rotation = nearest_rotation(x.T @ quantised)
    return best


def nearest_rotation(matrix: Tensor) -> Tensor:
    """The orthogonal factor U V of a square matrix U S V.

    On CUDA by the eigenvectors of its Gram matrix, as an SVD takes many times longer there; directions whose singular
    value is below sqrt(eps) of the largest, which hardly count, may differ.
    """
    if matrix.device.type != "cuda":
        u, _, v = torch.linalg.svd(matrix)
        nearest: Tensor = u @ v
        return nearest
    return rotation_by_eigenvectors(matrix)


def rotation_by_eigenvectors(matrix: Tensor) -> Tensor:
    """`nearest_rotation` without an SVD."""
    _, axes = torch.linalg.eigh(matrix.T @ matrix)
    axes = axes.flip(1)
    images = matrix @ axes
    images = images / torch.linalg.vector_norm(images, dim=0).clamp_min(torch.finfo(matrix.dtype).tiny)
    q, triangle = torch.linalg.qr(images)  # exactly orthogonal, and complete where singular values are zero
    signs = torch.where(triangle.diagonal() < 0, -1.0, 1.0).to(matrix.dtype)
    rotation: Tensor = (q * signs) @ axes.T
    return rotation


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
    floor = values[-1] * 1e-6 + torch.finfo(torch.float64).tiny
    logs = torch.maximum(values, floor).log().flip(0)
    known = (logs - logs[-1]).tolist()  # none negative: a wider product is not a smaller one
    taken: list[list[int]] = [[] for _ in range(codebooks)]
    product = [0.0] * codebooks
    for k in range(x.shape[1]):
        c = min((c for c in range(codebooks) if len(taken[c]) < starts[c + 1] - starts[c]), key=lambda c: product[c])
        taken[c].append(k)
        product[c] += known[k]
    order = torch.tensor([x.shape[1] - 1 - k for group in taken for k in group], device=x.device)
    rotation: Tensor = directions[:, order]
    return rotation
