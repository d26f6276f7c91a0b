"""Sums of g g^T over the gradients at layers' outputs, and the output metrics that they give."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from basis_search.errors import BadInput
from basis_search.layers.dense_modules import View
from basis_search.layers.output_metric import FACTOR_COLUMNS, WIDEST_MATRIX, OutputMetric
from basis_search.layers.second_moment import SharedMoments, float32_products

TEST_VECTORS = FACTOR_COLUMNS + 64
"""Of the sketch of a wide metric."""
WAITING_BYTES = 32 << 20
"""Gradients of a wide layer that wait to be multiplied together."""


class MetricSums:
    """Sums of g g^T by layer: float32 products where the gradients lie, float64 totals.

    Where there is bfloat16 hardware, float32 gradients are rounded to 8 bits before they are multiplied, a third of the
    time: that changes entries by about 1e-3 of g g^T at random, which vanishes in a mean over random projections.
    """

    def __init__(self) -> None:
        self._matrices, self._sketches = SharedMoments(rounded=True), dict[str, SketchedMoment]()

    def add(self, layer: str, tensor: Tensor, view: View, rows: Tensor) -> None:
        """Adds the rows [n, out], which are of a gradient tensor in the layer's own layout.

        They are kept for a while without a copy: autograd writes to no tensor that others refer to.
        """
        width = rows.shape[-1]
        if width <= WIDEST_MATRIX:
            self._matrices.add(layer, tensor, view, rows, copy=False)
        elif len(rows):
            self._sketches.setdefault(layer, SketchedMoment(width)).add(rows)

    def flush(self) -> None:
        """A backward pass is over."""
        self._matrices.flush()

    def metric(self, layer: str, width: int, count: int) -> OutputMetric:
        """The sum over the number of examples and probes, on the CPU, float32; zero for a layer without gradients.

        Raises:
            BadInput: the gradients were NaN or infinite.
        """
        try:
            if layer in self._sketches:
                return self._sketches.pop(layer).metric(count)
            if layer in self._matrices:
                return OutputMetric(self._matrices.mean(layer, count))
        except BadInput as problem:
            raise BadInput(f"layer {layer!r}: {problem}") from problem
        if width > WIDEST_MATRIX:
            return OutputMetric(rest=torch.zeros(width), factor=torch.zeros(width, 1))
        return OutputMetric(torch.zeros(width, width))


class SketchedMoment:
    """The sum G of g g^T over rows too wide for a matrix [width, width]: its diagonal and G O for random O.

    One pass; memory 12 width `TEST_VECTORS` bytes. From it comes the Nystrom approximation of rank `FACTOR_COLUMNS`,
    positive semidefinite and never above G. For every k < p - 1, p = `TEST_VECTORS`, the expected trace of what it
    misses is at most (1 + k / (p - k - 1)) times the sum of all but the k largest eigenvalues of G (Tropp, Yurtsever,
    Udell and Cevher 2017), before its smallest p - `FACTOR_COLUMNS` directions are left out. The diagonal of the metric
    is exact all the same: what is missed on it is its `rest`. So the error lies in entries off the diagonal alone.
    """

    def __init__(self, width: int, vectors: int = TEST_VECTORS, columns: int = FACTOR_COLUMNS):
        self._vectors, self._columns = min(vectors, width), columns
        self._limit = max(1, WAITING_BYTES // (4 * width))
        self._waiting: list[Tensor] = []
        self._diagonal: Tensor | None = None  # [width], float64
        self._product: Tensor | None = None  # G O [width, vectors], float64

    def add(self, rows: Tensor) -> None:
        """Takes rows [n, width] that nobody changes afterwards."""
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= self._limit:
            self._multiply()

    def metric(self, count: int) -> OutputMetric:
        """The mean over that many, on the CPU, float32."""
        self._multiply()
        assert self._product is not None
        assert self._diagonal is not None
        product, diagonal = self._product / count, self._diagonal / count
        vectors = _vectors(len(product), self._vectors, product.device).double()
        shift = torch.finfo(torch.float32).eps * torch.linalg.norm(product)  # of the rounding of float32 products
        if not bool(shift > 0):  # zero; or NaN, which the metric refuses
            return OutputMetric(rest=diagonal.float().cpu(), factor=product[:, : self._columns].float().cpu())
        shifted = product + shift * vectors
        core = vectors.T @ shifted
        lower = torch.linalg.cholesky((core + core.T) / 2)
        root = torch.linalg.solve_triangular(lower, shifted.T, upper=False)  # [vectors, width]
        values, axes = torch.linalg.eigh(root @ root.T)  # ascending
        values, axes = values[-self._columns :], axes[:, -self._columns :]
        kept = ((values - shift).clamp(min=0) / values.clamp(min=shift)).sqrt()
        factor = (root.T @ (axes * kept)).float()
        rest = (diagonal - factor.double().square().sum(1)).clamp(min=0)
        return OutputMetric(rest=rest.float().cpu(), factor=factor.cpu())

    def _multiply(self) -> None:
        if not self._waiting:
            return
        rows = torch.cat(self._waiting).float()
        self._waiting = []
        vectors = _vectors(rows.shape[1], self._vectors, rows.device)
        with float32_products(rows.dtype):  # exact, so that O^T (G O) is symmetric
            product, diagonal = rows.T @ (rows @ vectors), rows.square().sum(0)
        if self._product is None or self._diagonal is None:
            self._product, self._diagonal = product.double(), diagonal.double()
        else:
            self._product += product
            self._diagonal += diagonal


@functools.lru_cache(maxsize=2)
def _vectors(width: int, count: int, device: torch.device) -> Tensor:
    """[width, count], standard normal, the same in every process; shared by the layers of a width."""
    return torch.randn(width, count, generator=torch.Generator().manual_seed(width)).to(device)
