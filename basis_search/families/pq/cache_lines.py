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

    Memory: about 8 (3 in^2 + 3 in out) bytes.

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
    if lines >= count:
        return torch.arange(width, device=x.device)
    centred = x.double() - x.double().mean(0)
    side = count * size  # a last line that the row does not fill gets columns that explain nothing
    gram = torch.eye(side, dtype=torch.float64, device=x.device)
    gram[:width, :width] = centred.T @ centred / n
    moment = gram.new_zeros(side, weight.shape[0])
    moment[:width] = gram[:width, :width] @ weight.double().T
    gram.diagonal()[:width] += ridge * gram.diagonal()[:width].mean() + torch.finfo(torch.float64).tiny
    chosen = _greedy(gram, moment, lines, size).sort().values
    columns = (size * chosen[:, None] + torch.arange(size, device=x.device)).flatten()
    return columns[columns < width]


def _greedy(gram: Tensor, moment: Tensor, lines: int, size: int) -> Tensor:
    """The chosen lines [lines]. What each next one explains is computed from Schur complements on those before it."""
    count = len(gram) // size
    free = torch.ones(count, dtype=torch.bool, device=gram.device)
    unit = torch.eye(size, dtype=torch.float64, device=gram.device)
    chosen = []
    for _ in range(lines):
        own = gram.view(count, size, count, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # [count, size, size]
        factors, _ = torch.linalg.cholesky_ex(torch.where(free[:, None, None], own, unit))
        parts = torch.linalg.solve_triangular(factors, moment.view(count, size, -1), upper=False)
        best = torch.where(free, parts.square().sum((1, 2)), -1.0).argmax().view(1)
        chosen.append(best)
        free = free & (torch.arange(count, device=gram.device) != best)
        factor = factors.index_select(0, best)[0]
        along = torch.linalg.solve_triangular(factor, gram.view(count, size, -1).index_select(0, best)[0], upper=False)
        gram = gram - along.T @ along
        moment = moment - along.T @ parts.index_select(0, best)[0]
    return torch.cat(chosen)
