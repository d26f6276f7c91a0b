"""Encoded weights by least squares: min over w of E || Y_IJ - D sum_K (E vec X_IK) * w_KJ ||^2, bases fixed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from basis_search.errors import BadInput
from basis_search.families.stl.bases import bases
from basis_search.families.stl.spec import Spec
from basis_search.family import Params
from basis_search.layer import Layer

FLOAT64_SIDE = 6000
"""Largest normal matrix that is factorised in float64; beyond it float32 halves memory and time."""
LARGEST_SIDE = 24_576
"""Largest normal matrix at all: 2.4 GB in float32."""


def fit(spec: Spec, layer: Layer) -> Params:
    """Encoded weights [r, k/t, m/t], the bases, and a bias where the layer has one.

    An exact scheme encodes the weight and is exact. Otherwise the inputs' mean and covariance decide; the
    covariance is shrunk towards its mean variance, more the fewer the samples, so that any number of samples and
    singular moments will do.

    Raises:
        BadInput: the least-squares problem does not fit in memory.
    """
    kept = bases(spec)
    weight = layer.weight.double()
    bias = None if layer.bias is None else layer.bias.double()
    if kept.exact:
        encoded = encode_weight(kept.encode_weight.to(weight.device), weight, spec.tile)
    else:
        mean, covariance = moments(layer)
        encoded, shift = solve(
            kept.encode.to(weight.device), kept.decode.to(weight.device), weight, mean, covariance, bias is not None
        )
        bias = None if bias is None else bias + shift
    params = {"weight": encoded, "encode": kept.encode.to(weight.device), "decode": kept.decode.to(weight.device)}
    if bias is not None:
        params["bias"] = bias
    params = {name: tensor.to(layer.dtype).contiguous() for name, tensor in params.items()}
    params["out_features"] = torch.tensor(layer.out_features)
    return params


def encode_weight(basis: Tensor, weight: Tensor, tile: int) -> Tensor:
    """E_W vec W_KJ for each tile of the transposed weight: weight [out, in] -> [r, in/t, out/t]."""
    padded = _pad(weight, tile).T
    tiles = padded.reshape(len(padded) // tile, tile, -1, tile)  # [K, p, J, q]
    return torch.einsum("lpq,KpJq->lKJ", basis.view(-1, tile, tile), tiles)


def moments(layer: Layer) -> tuple[Tensor, Tensor]:
    """Mean [in] and covariance [in, in] of the inputs, float64, the covariance shrunk to a multiple of the identity.

    The weight of the identity is Oracle Approximating Shrinkage (Chen, Wiesel, Eldar, Hero, "Shrinkage algorithms for
    MMSE covariance estimation", 2010): near 1 for a handful of samples, near 0 for many.
    """
    n, k = layer.inputs.shape
    mean = layer.inputs.double().mean(dim=0)
    S = layer.second_moment.to(mean.device) - torch.outer(mean, mean)
    trace, square = float(S.trace()), float((S * S).sum())
    if trace <= 0 or n < 2:
        # All samples equal: nothing is known of the spread; take an isotropic one of the mean's own size.
        scale = max(float(mean.square().mean()), 1e-30)
        return mean, scale * torch.eye(k, dtype=torch.float64, device=mean.device)
    excess = square - trace**2 / k
    share = ((1 - 2 / k) * square + trace**2) / ((n + 1 - 2 / k) * excess) if excess > 0 else 1.0
    share = min(1.0, max(share, 1e-9))
    return mean, (1 - share) * S + share * trace / k * torch.eye(k, dtype=torch.float64, device=mean.device)


def solve(
    E: Tensor, D: Tensor, weight: Tensor, mean: Tensor, covariance: Tensor, free_bias: bool
) -> tuple[Tensor, Tensor]:
    """Least-squares encoded weights [r, k/t, m/t] and the change of the bias [out] that goes with them, float64.

    The t rows of a tile are independent draws with that mean and covariance, which is the expectation over all ways to
    group the samples into tiles. With P[l, l'] = sum_i E[l, i, :] E[l', i, :]^T over the tile's rows i and the encoded
    mean z, the normal matrix over (l, K) is (D^T D) * (P : covariance) + (D^T D) * (z z^T). A free bias absorbs what
    all rows of a tile share of the mean: D is then centred over the rows in the last term.

    Raises:
        BadInput: the normal matrix would be larger than LARGEST_SIDE.
    """
    r, t = len(E), round(E.shape[1] ** 0.5)
    m = len(weight)
    W, mu = _pad(weight, t), F.pad(mean, (0, -len(mean) % t))
    C = _pad(covariance, t)
    K, J = len(mu) // t, len(W) // t
    if r * K > LARGEST_SIDE:
        raise BadInput(
            f"stl: rank {r} on {len(mean)} inputs needs a normal matrix of side {r * K}, but {LARGEST_SIDE} is the "
            f"limit; use rank {LARGEST_SIDE // K} or less, or an exact scheme, which needs no fit"
        )
    rows = E.view(r, t, t)  # [l, i, p]
    columns = D.view(t, t, r)  # [i, q, l]
    P = torch.einsum("lip,kiq->lkpq", rows, rows)
    z = torch.einsum("lip,Kp->lK", rows, mu.view(K, t))
    shared = columns - columns.mean(dim=0) if free_bias else columns
    tiles = C.view(K, t, K, t).permute(0, 2, 1, 3)  # [K, K', p, q]

    cross = (C @ W.T).view(K, t, J, t)  # [K, p, J, q]
    right = torch.einsum("lpq,KpJq->lKJ", torch.einsum("iql,lip->lpq", columns, rows), cross)
    if not free_bias:
        mean_out = torch.einsum("iql,Jq->lJ", columns, (W @ mu).view(J, t))
        right = right + z[:, :, None] * mean_out[:, None, :]

    work = torch.float64 if r * K <= FLOAT64_SIDE else torch.float32
    flat_tiles = tiles.reshape(K * K, t * t).to(work)
    gram, gram_shared = D.T @ D, torch.einsum("iql,iqk->lk", shared, shared)
    normal = torch.empty(r, K, r, K, dtype=work, device=E.device)
    for row in range(r):
        blocks = flat_tiles @ (P[row].reshape(r, t * t) * gram[row][:, None]).to(work).T  # [K K', l']
        normal[row] = blocks.view(K, K, r).permute(0, 2, 1)
        normal[row] += (z[row][:, None, None] * (gram_shared[row][:, None] * z)[None]).to(work)
    encoded = _solve_symmetric(normal.view(r * K, r * K), right.reshape(r * K, J).to(work)).double().view(r, K, J)

    got = torch.einsum("iql,lK,lKJ->iJq", columns, z, encoded).flatten(1)[:, :m]  # mean output per row of a tile
    return encoded, weight @ mean - got.mean(dim=0)


def _solve_symmetric(A: Tensor, B: Tensor) -> Tensor:
    """A^-1 B for a positive semidefinite A, which is overwritten: Cholesky with the least ridge that lets it pass."""
    diagonal = A.diagonal()
    scale = float(diagonal.mean())
    if scale <= 0:
        return torch.zeros_like(B)
    ridge = torch.finfo(A.dtype).eps * 16
    original = diagonal.clone()
    while True:
        diagonal.copy_(original + ridge * scale)
        factor, failed = torch.linalg.cholesky_ex(A)
        if not bool(failed):
            return torch.cholesky_solve(B, factor)
        ridge *= 10


def _pad(matrix: Tensor, tile: int) -> Tensor:
    """Zeros at the right and the bottom up to whole tiles."""
    return F.pad(matrix, (0, -matrix.shape[1] % tile, 0, -matrix.shape[0] % tile))
