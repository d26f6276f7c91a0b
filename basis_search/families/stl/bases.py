"""The bases of a spec: E_X = U [r, n k], E_W = V [r, k m] and D = W^T [n m, r] of a bilinear scheme n x k x m."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from basis_search.families.stl.spec import TERNARY, Spec
from basis_search.schemes import (
    BilinearScheme,
    laderman,
    standard,
    strassen,
    tensor_product,
    winograd,
)
from basis_search.schemes.algebra import factor_orders
from basis_search.schemes.numerical import approximation, ternary_catalogue
from basis_search.schemes.programs.elimination import eliminate, inline_single_uses, program_from
from basis_search.schemes.programs.program import Program, rows_of


@dataclass(frozen=True, eq=False)
class Bases:
    """Float64 bases of a spec, and programs that apply exact and ternary ones by additions alone.

    Attributes:
        encode: E_X [r, n k]. encode_weight: E_W [r, k m]. decode: D [n m, r].
        encoding, decoding: straight-line programs of `encode` and `decode`; None for real bases.
        residual: ||T - [[U, V, W]]||^2 / ||T||^2 of the matrix product's tensor T; 0 for exact schemes.
    """

    encode: Tensor
    encode_weight: Tensor
    decode: Tensor
    encoding: Program | None
    decoding: Program | None
    residual: float = 0.0

    @property
    def exact(self) -> bool:
        return self.residual == 0

    @property
    def fixed(self) -> bool:
        """Whether encode and decode are not fitted, because programs apply them."""
        return self.encoding is not None


@lru_cache(maxsize=128)
def bases(spec: Spec) -> Bases:
    """The bases of `spec`: an exact scheme, or from the catalogue."""
    if spec.basis == "approximate":
        kept = approximation.load(*spec.sides, spec.rank)
        U, V, W = (torch.from_numpy(f) for f in (kept.U, kept.V, kept.W))
        return Bases(U, V, W.T.contiguous(), None, None, kept.residual)
    if spec.basis in TERNARY:
        return _ternary(spec)
    scheme = _exact(spec)
    U, V, W = (torch.from_numpy(f.astype("float64")) for f in (scheme.U, scheme.V, scheme.W))
    D = W.T.contiguous()
    return Bases(U, V, D, _program(U), _program(D))


def _program(matrix: Tensor) -> Program:
    """A short program by greedy elimination of common pairs; deterministic, so that costs are equal on all machines."""
    columns, rows = rows_of(matrix)
    named = {-1 - j: row for j, row in enumerate(rows)}
    eliminate(named, columns)
    inline_single_uses(named)
    return program_from(columns, len(rows), named)


def _ternary(spec: Spec) -> Bases:
    """Bases of the catalogue, or transposed by (A B)^T = B^T A^T, so that W encodes and U^T decodes."""
    turned = spec.basis == TERNARY[1]
    n, k, m = spec.sides
    kept = ternary_catalogue.load(*((n, m, k) if turned else (n, k, m)), spec.rank)
    U, V, W = (torch.from_numpy(f) for f in (kept.U, kept.V, kept.W))
    encoding, decoding = kept.encoding, kept.decoding
    if turned:
        U, V, W = W, factor_orders.transposed_rows(V, m, k), U
        encoding, decoding = decoding.transposed(), encoding.transposed()
    return Bases(U, V, W.T.contiguous(), encoding, decoding, kept.residual)


def _exact(spec: Spec) -> BilinearScheme:
    if spec.basis == "standard":
        return standard(*spec.sides)
    scheme = {"strassen": strassen, "winograd": winograd, "laderman": laderman}[spec.basis.removesuffix("2")]()
    return tensor_product(scheme, scheme) if spec.basis.endswith("2") else scheme
