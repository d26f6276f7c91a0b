"""The metric in which a model's output feels changes of a layer's outputs: K-FAC's output factor.

G = E[g g^T] per example, summed over the layer's rows, g the gradient at the layer's output of v . f for the model's
output f and v standard normal. To first order E||delta f||^2 = sum over rows of e^T G e for errors e of the outputs;
for an error dW of the weight and inputs of second moment S it is tr(G dW S dW^T), errors of one row being taken as
independent of its gradient (Martens and Grosse 2015). For logits with labels drawn from the model's softmax it is the
Fisher norm, twice the Kullback-Leibler divergence in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from basis_search.errors import BadInput

WIDEST_MATRIX = 8192
"""Wider outputs keep a diagonal and a factor in place of the matrix."""
FACTOR_COLUMNS = 256
LEAST_RIDGE = 1e-10
"""Relative ridge added where a root does not exist with the one asked for; tenfold until it does."""
SYMMETRY = 1e-3
"""Largest asymmetry accepted, relative to the largest entry."""


@dataclass(frozen=True, eq=False)
class OutputMetric:
    """G [out, out], symmetric and positive semidefinite: a matrix, or diag(rest) + F F^T.

    Args:
        matrix: [out, out]; or
        rest: [out], not negative, and
        factor: F [out, directions].

    Raises:
        BadInput: neither or both forms, shapes that disagree, NaN or infinite values, no symmetry, or a negative
            diagonal.
    """

    matrix: Tensor | None = None
    rest: Tensor | None = None
    factor: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.matrix is None) == (self.rest is None or self.factor is None):
            raise BadInput("an output metric is a matrix, or a rest and a factor; give one of the two")
        if self.matrix is not None and (self.matrix.ndim != 2 or len(self.matrix) != self.matrix.shape[1]):
            raise BadInput(f"the output metric has shape {tuple(self.matrix.shape)}, but [out, out] is needed")
        rest, factor = self.rest, self.factor
        if rest is not None and factor is not None and (rest.ndim, factor.shape[:-1]) != (1, rest.shape):
            raise BadInput(
                f"the output metric's rest and factor have shapes {tuple(rest.shape)} and {tuple(factor.shape)}, but "
                "[out] and [out, directions] are needed"
            )
        for tensor in self.tensors().values():
            if not bool(torch.isfinite(tensor.sum())) and not bool(torch.isfinite(tensor).all()):
                bad = int((~torch.isfinite(tensor)).sum())
                raise BadInput(
                    f"the output metric holds {bad} NaN or infinite values out of {tensor.numel()}; the model's output "
                    "or its gradients overflow: capture in float32, or on other inputs"
                )
        if self.matrix is not None and self.matrix.numel():
            gap, largest = (self.matrix - self.matrix.T).abs().max(), self.matrix.abs().max()
            if bool(gap > SYMMETRY * largest):
                raise BadInput(f"the output metric is not symmetric: entries differ by up to {float(gap):.3g}")
        least = self.matrix.diagonal() if self.matrix is not None else self.rest
        if least is not None and bool((least < 0).any()):
            raise BadInput(
                f"the output metric has a negative diagonal entry of {float(least.min()):.3g}, but a sum of g g^T "
                "has none"
            )

    @property
    def width(self) -> int:
        return len(self._first)

    @property
    def device(self) -> torch.device:
        return self._first.device

    @property
    def dtype(self) -> torch.dtype:
        return self._first.dtype

    @property
    def _first(self) -> Tensor:
        return next(iter(self.tensors().values()))

    @property
    def trace(self) -> Tensor:
        """Scalar, float64; 0 where the model's output does not depend on the layer."""
        return self.diagonal().sum()

    def diagonal(self) -> Tensor:
        """[out], float64."""
        if self.matrix is not None:
            return self.matrix.diagonal().double()
        rest, factor = self._parts
        return rest.double() + factor.double().square().sum(1)

    def times(self, columns: Tensor) -> Tensor:
        """G X for X [out, n] or [out], in the dtype of X."""
        if self.matrix is not None:
            return self.matrix.to(columns.dtype) @ columns
        rest, factor = (part.to(columns.dtype) for part in self._parts)
        scaled = rest * columns if columns.ndim == 1 else rest[:, None] * columns
        return scaled + factor @ (factor.T @ columns)

    def energy(self, rows: Tensor) -> Tensor:
        """The sum of e^T G e over rows e [n, out]: products in the rows' dtype, their sum in float64."""
        if self.matrix is not None:
            return (rows * (rows @ self.matrix.to(rows.dtype))).sum(dtype=torch.float64)
        rest, factor = (part.to(rows.dtype) for part in self._parts)
        apart = (rows.square() @ rest).sum(dtype=torch.float64)
        return apart + (rows @ factor).square().sum(dtype=torch.float64)

    def damage(self, difference: Tensor, moment: Tensor) -> Tensor:
        """tr(G dW S dW^T), float64: the expected squared change of the model's output per example.

        Args:
            difference: dW [out, in].
            moment: S [in, in], second moment of the inputs.
        """
        return (self.times(difference) * (difference @ moment.to(difference.dtype))).sum(dtype=torch.float64)

    def dense(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """G [out, out]."""
        if self.matrix is not None:
            return self.matrix.to(dtype)
        rest, factor = (part.to(dtype) for part in self._parts)
        whole = factor @ factor.T
        whole.diagonal().add_(rest)
        return whole

    def cholesky(self, ridge: float) -> Tensor:
        """L [out, out], lower triangular, float64, with L L^T = G + ridge mean(diagonal of G) I.

        A ridge below rounding is raised until the factor exists. For G = 0 the mean counts as 1.
        """
        whole, unit = self.dense(), self._unit
        while True:
            raised = whole.clone()
            raised.diagonal().add_(ridge * unit)
            found = torch.linalg.cholesky_ex(raised)
            if int(found.info) == 0:
                lower: Tensor = found.L
                return lower
            ridge = max(10 * ridge, LEAST_RIDGE)

    def root(self, ridge: float) -> MetricRoot:
        """R with R R^T = G + ridge mean(diagonal of G) I, without a matrix [out, out] where G has none."""
        if self.matrix is not None:
            return MetricRoot(lower=self.cholesky(ridge))
        rest, factor = (part.double() for part in self._parts)
        ridge = ridge if bool((rest > 0).all()) else max(ridge, LEAST_RIDGE)
        scale = (rest + ridge * self._unit).sqrt()
        axes, values, _ = torch.linalg.svd(factor / scale[:, None], full_matrices=False)
        return MetricRoot(scale=scale, axes=axes, stretch=(1 + values.square()).sqrt())

    @property
    def _unit(self) -> Tensor:
        mean = self.diagonal().mean()
        return torch.where(mean > 0, mean, 1.0)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> OutputMetric:
        """Itself if it is there already."""
        if (device is None or torch.device(device) == self.device) and (dtype is None or dtype == self.dtype):
            return self
        return self.moved(lambda tensor: tensor.to(device=device, dtype=dtype))

    def moved(self, move: Callable[[Tensor], Tensor]) -> OutputMetric:
        """The metric of the tensors that `move` makes of its tensors."""
        return OutputMetric(**{n: move(t) for n in FIELDS if (t := getattr(self, n)) is not None})

    def tensors(self) -> dict[str, Tensor]:
        """By the names in a file."""
        return {stored: t for n, stored in FIELDS.items() if (t := getattr(self, n)) is not None}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> OutputMetric | None:
        """Of what `tensors` gave, among others; None if there is no metric among them."""
        found = {name: tensors[stored] for name, stored in FIELDS.items() if stored in tensors}
        return cls(**found) if found else None

    @property
    def _parts(self) -> tuple[Tensor, Tensor]:
        assert self.rest is not None
        assert self.factor is not None
        return self.rest, self.factor


FIELDS = {"matrix": "output_metric", "rest": "output_metric_diagonal", "factor": "output_metric_factor"}
"""Attributes, and their names in a layer's file."""


@dataclass(frozen=True, eq=False)
class MetricRoot:
    """R with R R^T = G: a Cholesky factor, or diag(scale) (I + U (diag(stretch) - I) U^T). All float64.

    The squared singular values of R^T W C^(1/2) are those of G^(1/2) W C^(1/2).
    """

    lower: Tensor | None = None
    scale: Tensor | None = None
    axes: Tensor | None = None
    stretch: Tensor | None = None

    def transposed_times(self, columns: Tensor) -> Tensor:
        """R^T X for X [out, n]."""
        if self.lower is not None:
            return self.lower.mT @ columns
        scale, axes, stretch = self._parts
        scaled = scale[:, None] * columns
        return scaled + axes @ ((stretch - 1)[:, None] * (axes.mT @ scaled))

    def solve_transposed(self, columns: Tensor) -> Tensor:
        """R^-T Y for Y [out, n]."""
        if self.lower is not None:
            solved: Tensor = torch.linalg.solve_triangular(self.lower.mT, columns, upper=True)
            return solved
        scale, axes, stretch = self._parts
        shrunk = columns + axes @ ((1 / stretch - 1)[:, None] * (axes.mT @ columns))
        return shrunk / scale[:, None]

    @property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        assert self.scale is not None
        assert self.axes is not None
        assert self.stretch is not None
        return self.scale, self.axes, self.stretch
