"""Choice of the cache lines of a row whose columns best explain the outputs linearly.

Reading row-major inputs costs by the lines touched, not by the columns read. Greedy: each next line minimises
tr(Y^T Y) - tr(M^T G^-1 M), with G the second moments of the chosen columns and M their products with Y.
"""

from __future__ import annotations

import torch
from torch import Tensor

from basis_search.errors import BadInput

LINE_BYTES = 64


def columns_of_lines(x: Tensor, weight: Tensor, lines: int, codebooks: int, ridge: float = 1e-3) -> Tensor:
    """The columns [k], ascending, of the `lines` best cache lines of rows x [n, in]; weight [out, in].

    Raises:
        BadInput: fewer than one line, or so few that the codebooks outnumber their columns.
    """
    n, width = x.shape
    size = LINE_BYTES // x.element_size()
    count = -(-width // size)
    if lines < 1 or min(lines, count) * size < codebooks:
        raise BadInput(
            f"{lines} cache lines of {size} columns are too few for {codebooks} codebooks, which need a column each; "
            f"allow at least {-(-codebooks // size)}"
        )
    blocks = [torch.arange(begin, min(begin + size, width)) for begin in range(0, width, size)]
    if lines >= count:
        return torch.arange(width)
    centred = x.double() - x.double().mean(0)
    gram = centred.T @ centred / n  # [in, in]
    moment = gram @ weight.double().T  # [in, out]
    gram.diagonal().add_(ridge * float(gram.diagonal().mean()) + torch.finfo(torch.float64).tiny)
    chosen: list[int] = []
    for _ in range(lines):
        best, most = -1, -1.0
        for block in range(count):
            if block in chosen:
                continue
            columns = torch.cat([blocks[b] for b in (*chosen, block)])
            factor = torch.linalg.cholesky(gram[columns][:, columns])
            explained = float(torch.linalg.solve_triangular(factor, moment[columns], upper=False).square().sum())
            if explained > most:
                best, most = block, explained
        chosen.append(best)
    return torch.cat([blocks[b] for b in sorted(chosen)])
