"""Products with a Kronecker-sparse factor w [a, b, c, d] by libraries, each on its preferred layout of the factor."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Call = Callable[[], Tensor]
DENSE_VALUES = 2**22
"""Larger dense matrices are not timed."""


def batched_products(w: Tensor, x: Tensor) -> Iterator[tuple[str, Call]]:
    """Batch-size-first, x [batch, acd]: torch's batched product on a factor stored for it, and einsum."""
    a, b, c, d = w.shape
    turned = w.permute(0, 3, 2, 1).reshape(a * d, c, b).contiguous()
    yield (
        "bmm",
        lambda: (
            torch.bmm(x.view(-1, a, c, d).permute(1, 3, 0, 2).reshape(a * d, -1, c), turned)
            .view(a, d, -1, b)
            .permute(2, 0, 3, 1)
            .reshape(-1, a * b * d)
        ),
    )
    yield "einsum", lambda: torch.einsum("nikl,ijkl->nijl", x.view(-1, a, c, d), w).flatten(1)


def first_baselines(w: Tensor, x: Tensor) -> Iterator[tuple[str, Call]]:
    """Batch-size-first, x [batch, acd]: each on a factor stored for it."""
    yield from batched_products(w, x)
    a, b, c, d = w.shape
    if (
        a * b * d * a * c * d <= DENSE_VALUES * 4 and x.dtype == torch.float32
    ):  # torch has no bfloat16 BSR product on CPUs
        ordered, columns, back = bsr(w)
        yield "bsr", lambda: (ordered @ x[:, columns].T)[back].T.contiguous()


def last_baselines(w: Tensor, x: Tensor) -> Iterator[tuple[str, Call]]:
    """Batch-size-last, x [acd, batch]."""
    a, b, c, d = w.shape
    n = x.shape[1]
    stacked = w.permute(0, 3, 1, 2).reshape(a * d, b, c).contiguous()
    yield (
        "bmm",
        lambda: (
            torch.bmm(stacked, x.view(a, c, d, n).transpose(1, 2).reshape(a * d, c, n))
            .view(a, d, b, n)
            .transpose(1, 2)
            .reshape(-1, n)
        ),
    )
    yield "einsum", lambda: torch.einsum("ijkl,ikln->ijln", w, x.view(a, c, d, n)).reshape(-1, n)

    def views() -> Tensor:  # BLAS takes strided rows: no copies, one call per block
        y = x.new_empty(a, b, d, n)
        sources, targets = x.view(a, c, d, n), y
        for i in range(a):
            for el in range(d):
                torch.mm(stacked[i * d + el], sources[i, :, el], out=targets[i, :, el])
        return y.view(-1, n)

    yield "views", views


def bsr(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The blocks as a block-sparse matrix, its column order, and the inverse of its row order."""
    a, b, c, d = w.shape
    tile = math.gcd(b, c)
    stacked = w.permute(0, 3, 1, 2).reshape(a * d, b, c)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns that BSR is in beta
        matrix = torch.block_diag(*stacked).to_sparse_bsr((tile, tile))  # type: ignore[no-untyped-call]
    rows = torch.arange(a * b * d).view(a, b, d).transpose(1, 2).flatten()
    columns = torch.arange(a * c * d).view(a, c, d).transpose(1, 2).flatten()
    return matrix, columns, torch.argsort(rows)
