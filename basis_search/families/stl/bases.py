"""The bases of a spec: E_X = U [r, t*t], E_W = V [r, t*t] and D = W^T [t*t, r] of a bilinear scheme for t x t tiles."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from basis_search.families.stl.program import Program, shortest
from basis_search.families.stl.spec import Spec
from basis_search.schemes import BilinearScheme, approximation, laderman, standard, strassen, tensor_product, winograd


@dataclass(frozen=True, eq=False)
class Bases:
    """Float64 bases of one spec, and how exact schemes apply them by additions alone.

    Attributes:
        encode: E_X [r, t*t]. encode_weight: E_W [r, t*t]. decode: D [t*t, r].
        encoding, decoding: straight-line programs of `encode` and `decode`; None where the bases are real.
    """

    encode: Tensor
    encode_weight: Tensor
    decode: Tensor
    encoding: Program | None
    decoding: Program | None

    @property
    def exact(self) -> bool:
        return self.encoding is not None


@lru_cache(maxsize=128)
def bases(spec: Spec) -> Bases:
    """The bases of `spec`; from the catalogue, so nothing is derived here."""
    t = spec.tile
    if spec.basis == "approximate":
        kept = approximation.load(t, t, t, spec.rank)
        U, V, W = (torch.from_numpy(f) for f in (kept.U, kept.V, kept.W))
        return Bases(U, V, W.T.contiguous(), None, None)
    scheme = _exact(spec)
    U, V, W = (torch.from_numpy(f.astype("float64")) for f in (scheme.U, scheme.V, scheme.W))
    D = W.T.contiguous()
    return Bases(U, V, D, shortest(U), shortest(D))


def _exact(spec: Spec) -> BilinearScheme:
    if spec.basis == "standard":
        return standard(spec.tile, spec.tile, spec.tile)
    scheme = {"strassen": strassen, "winograd": winograd, "laderman": laderman}[spec.basis.removesuffix("2")]()
    return tensor_product(scheme, scheme) if spec.basis.endswith("2") else scheme
