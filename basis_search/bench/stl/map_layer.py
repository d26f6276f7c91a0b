"""Error of each family on a square layer: E||W x - f(x)||^2 / E||W x||^2 for inputs of known covariance.

Weights are Gaussian, inputs Gaussian with covariance eigenvalues i^(-2 decay) along random axes. Errors of low rank, of
pruning and of fitted tiles are expectations under that covariance, the others are measured on drawn rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from basis_search.families import int8, stl
from basis_search.families.protocol import relative_gap
from basis_search.families.stl.adapt import adapt
from basis_search.families.stl.bases import Bases, bases
from basis_search.families.stl.basis_orders import best_order
from basis_search.families.stl.fit import encode_weight
from basis_search.families.stl.low_rank_part import best_low_rank, fit_tiles_and_low_rank
from basis_search.families.stl.normal_equations import TileProblem
from basis_search.families.stl.reference import reference
from basis_search.layers.layer import Layer

ROWS, ENTRIES = 512, 1 << 20
"""Least number of drawn rows, and of drawn entries."""


@dataclass(frozen=True, eq=False)
class Square:
    """A layer of the map, with its errors so far.

    Attributes:
        weight: [size, size].
        covariance: [size, size], of the inputs.
        x: [rows, size], drawn from that covariance.
        whole: E||W x||^2.
        up, down: [size, size / 2] and [size / 2, size]; their leading r columns and rows are the best rank-r part.
        known: errors by spec and number of sweeps.
    """

    weight: Tensor
    covariance: Tensor
    x: Tensor
    whole: float
    up: Tensor
    down: Tensor
    known: dict[tuple[stl.Spec, int], float] = field(default_factory=dict)

    @classmethod
    def of(cls, size: int, decay: float) -> Square:
        """Seeded by the size alone: every decay has the same weight and axes."""
        draw = torch.Generator().manual_seed(size)
        weight = torch.randn(size, size, generator=draw, dtype=torch.float64)
        axes = torch.linalg.qr(torch.randn(size, size, generator=draw, dtype=torch.float64))[0]
        energy = torch.arange(1, size + 1, dtype=torch.float64) ** (-2 * decay)
        covariance = axes * energy @ axes.T
        x = torch.randn(max(ROWS, ENTRIES // size), size, generator=draw, dtype=torch.float64) * energy.sqrt() @ axes.T
        whole = float((weight @ covariance * weight).sum())
        return cls(weight, covariance, x, whole, *best_low_rank(weight, covariance, size // 2))

    def low_rank(self, rank: int) -> float:
        """Error of the best matrix of that rank, at most size / 2, for these inputs."""
        return self._left(self.weight - self.up[:, :rank] @ self.down[:rank])

    def pruned(self) -> float:
        """Error of 2:4 pruning: of four neighbouring weights of an output the two largest remain."""
        fours = self.weight.abs().view(len(self.weight), -1, 4)
        keep = torch.zeros_like(fours).scatter_(2, fours.topk(2, dim=2).indices, 1.0).view_as(self.weight)
        return self._left(self.weight * (1 - keep))

    def _left(self, rest: Tensor) -> float:
        """Error of weights that are off by `rest`."""
        return float((rest @ self.covariance * rest).sum()) / self.whole

    def int8(self) -> float:
        """Error of weights and inputs rounded to 8 bits, on the drawn rows."""
        x = self.x.float()
        layer, kernel = Layer("int8", self.weight.float(), None, x, x, len(x)), int8.KERNELS[0]
        y = kernel.run(int8.Spec(), kernel.pack(int8.Spec(), int8.fit(int8.Spec(), layer)), x)
        return relative_gap(y, self.x @ self.weight.T) ** 2

    def unfitted(self, spec: stl.Spec) -> float:
        """Error of weights encoded by the scheme's E_W, as for white inputs, on the drawn rows."""
        basis = bases(spec)
        if basis.exact:
            return 0.0
        params = {"encode": basis.encode, "decode": basis.decode, "out_features": torch.tensor(len(self.weight))}
        params["weight"] = encode_weight(basis.encode_weight, self.weight, spec.sides)
        return relative_gap(reference(spec, params, self.x), self.x @ self.weight.T) ** 2

    def tiles(self, spec: stl.Spec, sweeps: int) -> float:
        """Error of encoded weights fitted to the inputs; with sweeps, of bases fitted too."""
        basis = bases(spec)
        if basis.exact:
            return 0.0
        key = spec, 0 if basis.fixed else sweeps
        if key not in self.known:
            problem = TileProblem.of(spec.sides, self.weight, self._mean, self.covariance, False)
            E, D, encoded = adapt(problem, *_start(basis, problem), key[1])
            self.known[key] = problem.error(E, D, encoded) / problem.scale
        return self.known[key]

    def hybrid(self, spec: stl.Spec) -> float:
        """Error of tiles and a low-rank part of rank `spec.waist`, fitted together."""
        if (spec, 0) not in self.known:
            start, rows = partial(_start, bases(spec)), spec.sides[0]
            problem, E, D, encoded, *_ = fit_tiles_and_low_rank(
                spec.sides, spec.waist, 0, start, self.weight, (self._mean, self.covariance), False
            )
            self.known[spec, 0] = problem.error(E, D, encoded) / (rows * self.whole)
        return self.known[spec, 0]

    @property
    def _mean(self) -> Tensor:
        return self.weight.new_zeros(len(self.weight))


def _start(basis: Bases, problem: TileProblem) -> tuple[Tensor, Tensor]:
    if basis.fixed:
        return basis.encode, basis.decode
    return best_order(problem, basis.encode, basis.encode_weight, basis.decode)
