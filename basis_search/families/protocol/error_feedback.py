"""Rounding of a weight with error feedback: the errors of weights rounded before change those rounded after them.

With C = U U^T and G = L L^T, U upper and L lower triangular, tr(G D C D^T) = ||L^T D U||_F^2 for errors D = W - W'. An
entry of L^T D U depends on errors in its own and earlier columns and in its own and later rows alone, so weights are
rounded one after another, each to the value of its grid next to the one that would make the entry zero. In C alone this
is GPTQ (Frantar et al. 2022, arXiv 2210.17323), Babai's nearest plane; in both it is the adaptive rounding of YAQA
(Tseng et al. 2025, arXiv 2505.22988). Columns and rows with most energy come first.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from basis_search.layers.input_mean import answered_mean
from basis_search.layers.layer import Layer
from basis_search.layers.output_metric import OutputMetric
from basis_search.layers.output_spectrum import covariance, output_gains
from basis_search.layers.ridge import fitting_metric, input_ridge

Nearest = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Values, their steps and zero points -> the nearest values of their grids, all of one shape."""

RIDGE = 1e-2
"""Ridge on C, relative to the mean of its diagonal, where the layer has no better one."""
BLOCK = 64
"""Columns rounded before the columns after them are brought up to date by one product."""
TILE = 32
"""Side of the tiles that are rounded together; those on one diagonal of tiles do not depend on each other."""
MOST_PRODUCTS = 1 << 37
"""Limit on out in (out + in), the multiplications of feedback in both metrics; beyond it there is none from G."""


def rounded_in_metric(
    layer: Layer, weight: Tensor, nearest: Nearest, step: Tensor, zero: Tensor | None = None
) -> Tensor | None:
    """A rounded weight [out, in] of low tr(G dW C dW^T), not above that of the nearest rounding; on the layer's device.

    None where `fitting_metric` gives none: the nearest rounding stays. No value is read. Memory: 12 values a weight.

    Args:
        layer: on its device.
        weight: [out, in], in the precision of the computation.
        nearest: the grid.
        step, zero: of each weight, expandable to [out, in]; zero points are 0 by default.
    """
    metric = fitting_metric(layer)
    if metric is None:
        return None
    zero = torch.zeros_like(step) if zero is None else zero
    step, zero = step.expand_as(weight), zero.expand_as(weight)
    spread = covariance(layer).to(weight.dtype)
    plain = nearest(weight, step, zero)
    columns, upper = _input_root(layer, spread)
    if not _both_sides(layer):
        found = _by_columns(weight[:, columns], upper, nearest, step[:, columns], zero[:, columns])
        found = found[:, columns.argsort()]
    else:
        rows, lower = _output_root(metric)
        lower = lower.to(weight.dtype)
        parts = (part[rows][:, columns] for part in (weight, step, zero))
        found = _by_tiles(lower, upper, nearest, *parts)[rows.argsort()][:, columns.argsort()]
    better = metric.damage(weight - found, spread) < metric.damage(weight - plain, spread)
    return torch.where(better, found, plain)


def rounding_gains(layer: Layer) -> tuple[Tensor, Tensor]:
    """(of outputs [out], of inputs [in]), float64: the expected error in the layer's metric of steps s_ij is the sum of
    s_ij^2 gain_i gain_j / 12; cached by layer.

    Without feedback these are the diagonals of G, or ones, and of S; with it, squared diagonals of the roots.
    """
    layer = layer.on_device()
    if layer not in _gains:
        metric = fitting_metric(layer)
        rows, columns = output_gains(layer), layer.second_moment.diagonal()
        if metric is not None:
            order, upper = _input_root(layer, covariance(layer))
            columns = upper.diagonal().square()[order.argsort()]
            if _both_sides(layer):
                order, lower = _output_root(metric)
                scale = rows.mean() / metric.diagonal().mean()
                rows = scale * lower.diagonal().square()[order.argsort()]
        _gains[layer] = rows, columns
    return _gains[layer]


_gains: weakref.WeakKeyDictionary[Layer, tuple[Tensor, Tensor]] = weakref.WeakKeyDictionary()


def answering_bias(layer: Layer, lost: Tensor) -> Tensor:
    """The layer's bias plus what the lost weight [out, in] gives for the mean input, [out] in the layer's dtype."""
    assert layer.bias is not None
    return (layer.bias.double() + lost.double() @ answered_mean(layer)).to(layer.dtype)


def _both_sides(layer: Layer) -> bool:
    out, width = layer.weight.shape
    return out * width * (out + width) <= MOST_PRODUCTS


def _output_root(metric: OutputMetric) -> tuple[Tensor, Tensor]:
    """(order of rows, the last of most energy; L of G in that order)."""
    rows = metric.diagonal().sort(stable=True).indices
    root, _ = torch.linalg.cholesky_ex(metric.dense()[rows][:, rows])
    return rows, root


def _input_root(layer: Layer, spread: Tensor) -> tuple[Tensor, Tensor]:
    """(order of columns, the first of most energy; U of C and a ridge in that order); the identity for C = 0."""
    columns = spread.diagonal().sort(descending=True, stable=True).indices
    ridge = RIDGE if (known := input_ridge(layer)) is None else known
    mean = spread.diagonal().mean()
    raised = spread[columns][:, columns].double().flip(0, 1)
    raised.diagonal().add_(torch.where(mean > 0, ridge * mean, 1.0))
    root, info = torch.linalg.cholesky_ex(raised)
    apart = torch.diag_embed(raised.diagonal().clamp_min(0).sqrt())
    return columns, torch.where(info == 0, root, apart).flip(0, 1).to(spread.dtype)


def _by_columns(weight: Tensor, upper: Tensor, nearest: Nearest, step: Tensor, zero: Tensor) -> Tensor:
    # Transposed: the weights of a column follow each other in memory.
    weight, step, zero = (part.T.contiguous() for part in (weight, step, zero))
    lost, found = torch.zeros_like(weight), torch.empty_like(weight)
    pivots = upper.diagonal()[:, None]
    for begin in range(0, len(weight), BLOCK):
        end = min(begin + BLOCK, len(weight))
        carried = upper[:begin, begin:end].T @ lost[:begin]  # (D U)^T of the block
        for j in range(begin, end):
            found[j] = nearest(weight[j] + carried[j - begin] / pivots[j], step[j], zero[j])
            lost[j] = weight[j] - found[j]
            carried[j - begin + 1 :].addcmul_(upper[j, j + 1 : end, None], lost[j])
    return found.T.contiguous()


def _by_tiles(lower: Tensor, upper: Tensor, nearest: Nearest, weight: Tensor, step: Tensor, zero: Tensor) -> Tensor:
    """Tiles from the last rows to the first and from the first columns to the last, a diagonal of tiles at a time."""
    out, width = weight.shape
    below, beyond = -out % TILE, -width % TILE
    high, wide = (out + below) // TILE, (width + beyond) // TILE
    weight, step, zero = (
        functional.pad(part, (0, beyond, 0, below), value=value)
        for part, value in ((weight, 0.0), (step, 1.0), (zero, 0.0))
    )
    lower, upper = _bordered(lower, below), _bordered(upper, beyond)
    lost, carried = torch.zeros_like(weight), torch.zeros_like(weight)  # D, and M = D U of the tiles that are done
    across = upper.view(-1, wide, TILE).transpose(0, 1)  # [wide, in, TILE]: U by columns of tiles
    along = lower.view(-1, high, TILE).permute(1, 2, 0)  # [high, TILE, out]: L^T by rows of tiles
    tiled = [part.view(high, TILE, wide, TILE) for part in (weight, step, zero, lost, carried)]
    columns_of = carried.view(-1, wide, TILE).transpose(0, 1)  # [wide, out, TILE]
    rows_of = lost.view(high, TILE, -1)
    blocks = [part.view(len(part) // TILE, TILE, -1, TILE) for part in (lower, upper)]
    for shift in range(high - 1, -wide, -1):  # row of tiles minus column of tiles
        rows = slice(max(shift, 0), min(high, wide + shift))
        columns = slice(rows.start - shift, rows.stop - shift)
        places = [part[rows, :, columns].diagonal(dim1=0, dim2=2).movedim(2, 0) for part in tiled]
        own = (places[0].contiguous(), places[1].contiguous(), places[2].contiguous())
        before = torch.bmm(rows_of[rows], across[columns])  # D U of earlier columns
        later = torch.bmm(along[rows], columns_of[columns])  # L^T M of later rows
        within, inside = (
            part[these, :, these].diagonal(dim1=0, dim2=2).movedim(2, 0).contiguous()
            for part, these in zip(blocks, (rows, columns), strict=True)
        )
        places[3].copy_(_one_tile(own, before, later, within, inside, nearest))
        places[4].copy_(before)
    return (weight - lost)[:out, :width]


def _one_tile(
    own: tuple[Tensor, Tensor, Tensor], before: Tensor, later: Tensor, within: Tensor, inside: Tensor, nearest: Nearest
) -> Tensor:
    """The errors [tiles, n, n] of weights, steps and zero points `own`; `before` becomes D U with the tile's own."""
    weight, step, zero = own
    n = weight.shape[1]
    lost = torch.zeros_like(weight)
    for shift in range(n - 1, -n, -1):  # row minus column
        i, j = slice(max(shift, 0), min(n, n + shift)), slice(max(-shift, 0), min(n, n - shift))
        value, steps, zeros, added, error = (
            part[:, i, j].diagonal(dim1=1, dim2=2) for part in (weight, step, zero, later, lost)
        )
        pivots = (within[:, i, i].diagonal(dim1=1, dim2=2)) * inside[:, j, j].diagonal(dim1=1, dim2=2)
        felt = added + (within[:, :, i] * before[:, :, j]).sum(1)
        error.copy_(value - nearest(value + felt / pivots, steps, zeros))
        before[:, i] += error[:, :, None] * inside[:, j]
    return lost


def _bordered(matrix: Tensor, more: int) -> Tensor:
    """A square matrix with the identity for `more` rows and columns."""
    whole = functional.pad(matrix, (0, more, 0, more))
    whole.diagonal()[len(matrix) :] = 1
    return whole
