"""Which family wins where, at equal counted FLOPs: E||W x - f(x)||^2 / E||W x||^2 over sizes, spectra and budgets.

Layers are square, weights Gaussian, inputs Gaussian with covariance eigenvalues i^(-2 decay) along random axes; the
errors of fitted layers are expectations under that covariance, not estimates from samples.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from basis_search.families import dense, int8, lowrank, stl
from basis_search.families.stl.adapt import adapt
from basis_search.families.stl.bases import Bases, bases
from basis_search.families.stl.fit import encode_weight
from basis_search.families.stl.normal import Problem
from basis_search.families.stl.reference import reference
from basis_search.families.stl.relatives import best
from basis_search.families.stl.waist import fit_both, leading
from basis_search.family import relative_gap
from basis_search.layer import Layer, LayerShape
from basis_search.schemes import approximation, ternary_kept

Rows = list[dict[str, Any]]

SIZES = (128, 256, 512, 1024, 2048)
FITTED = 256
"""Largest size at which STL is fitted; above it, where a fit takes minutes, its fixed bases stand for it."""
DECAYS = (0.0, 0.5, 1.0)
BUDGETS = (0.75, 0.6, 0.5, 0.4)
WAISTS = (1 / 32, 1 / 16, 1 / 8, 1 / 5)
"""Of the hybrid, as shares of the width; its two parts alone are tried beside them."""
KINDS = ("approximate", "ternary", "ternary-turned")
SWEEPS = 4
ROWS = 512


def winners(device: str, threads: int) -> Rows:
    """One row per size, decay and budget: the error of each family and which is least (exact schemes as STL)."""
    return [row for size in SIZES for decay in DECAYS for row in _rows(size, decay)]


def _rows(size: int, decay: float) -> Rows:
    draw = torch.Generator().manual_seed(size)
    weight = torch.randn(size, size, generator=draw, dtype=torch.float64)
    axes = torch.linalg.qr(torch.randn(size, size, generator=draw, dtype=torch.float64))[0]
    energy = torch.arange(1, size + 1, dtype=torch.float64) ** (-2 * decay)
    covariance = axes * energy @ axes.T
    x = torch.randn(ROWS, size, generator=draw, dtype=torch.float64) * energy.sqrt() @ axes.T
    whole = float((weight @ covariance * weight).sum())
    up, down = leading(weight, covariance, size // 2)
    fitted = size <= FITTED
    rows: Rows = []
    for budget in BUDGETS:
        errors: dict[str, float | None] = {
            "STL, fixed bases": _blind(size, weight, x, budget),
            "STL, fitted": _tiles(size, weight, covariance, budget, 0) if fitted else None,
            "STL, bases fitted too": _tiles(size, weight, covariance, budget, SWEEPS) if fitted else None,
            "low rank": _left(weight - up[:, : (q := _waist(size, budget))] @ down[:q], covariance, whole),
            "2:4 pruning": _pruned(weight, covariance, whole) if budget >= 0.5 else None,
        }
        parts = [e for e in (errors["STL, fitted"], errors["low rank"]) if e is not None]
        if fitted:
            errors["low rank + STL"] = min([*parts, *_hybrids(size, weight, covariance, budget, whole)])
        known = {name: error for name, error in errors.items() if error is not None}
        least = min(known.values())
        # The hybrid counts as a winner of its own only where it beats both of its parts.
        winner = next(name for name, error in known.items() if error <= least * (1 + 1e-9))
        case = f"{size} -> {size}, decay {decay:g}, budget {budget:g}"
        rows.append({"case": case, "size": size, "decay": decay, "budget": budget, **errors, "winner": winner})
    rows.append(_int8(size, decay, weight, x))
    return rows


def _shape(size: int) -> LayerShape:
    return LayerShape(size, size, size)


def _fits(spec: stl.Spec, size: int, budget: float) -> bool:
    return stl.cost(spec, _shape(size)).flops <= budget * dense.cost(dense.Spec(), _shape(size)).flops


def _specs(size: int, budget: float, waist: int = 0) -> list[stl.Spec]:
    """Of each kind of bases for tile 4 the most products within the budget, the least residual first."""
    found = []
    for kind in KINDS:
        ranks = (approximation if kind == "approximate" else ternary_kept).known_ranks(4, 4, 4)
        fitting = [s for r in ranks if _fits(s := stl.Spec(4, r, kind, waist=waist), size, budget)]
        found += fitting[-1:]
    return sorted(found, key=lambda spec: bases(spec).residual)


def _exact_fits(size: int, budget: float) -> bool:
    return _fits(stl.Spec(4, 49, "winograd2"), size, budget)


def _blind(size: int, weight: Tensor, x: Tensor, budget: float) -> float | None:
    """Weights encoded by the scheme's own E_W, as for white inputs; on drawn rows."""
    if _exact_fits(size, budget):
        return 0.0
    specs = _specs(size, budget)
    if not specs:
        return None
    kept = bases(specs[0])
    params = {"weight": encode_weight(kept.encode_weight, weight, 4), "encode": kept.encode, "decode": kept.decode}
    y = reference(specs[0], {**params, "out_features": torch.tensor(size)}, x)
    return relative_gap(y, x @ weight.T) ** 2


def _tiles(size: int, weight: Tensor, covariance: Tensor, budget: float, sweeps: int) -> float | None:
    """The best of the kinds; with sweeps, of those whose bases a fit may change, and of the others without."""
    if _exact_fits(size, budget):
        return 0.0
    problem = Problem.of(4, weight, weight.new_zeros(size), covariance, False)
    errors = []
    for spec in _specs(size, budget):
        kept = bases(spec)
        E, D = _start(kept, problem)
        E, D, encoded = adapt(problem, E, D, 0 if kept.fixed else sweeps)
        errors.append(problem.left(E, D, encoded) / problem.scale)
    return min(errors, default=None)


def _start(kept: Bases, problem: Problem) -> tuple[Tensor, Tensor]:
    return (kept.encode, kept.decode) if kept.fixed else best(problem, kept.encode, kept.encode_weight, kept.decode)


def _waist(size: int, budget: float) -> int:
    """The highest rank within the budget."""
    most = budget * dense.cost(dense.Spec(), _shape(size)).flops
    return max(rank for rank in range(1, size // 2) if lowrank.cost(lowrank.Spec(rank), _shape(size)).flops <= most)


def _left(rest: Tensor, covariance: Tensor, whole: float) -> float:
    """What is left of the layer by weights that are `rest` off."""
    return float((rest @ covariance * rest).sum()) / whole


def _pruned(weight: Tensor, covariance: Tensor, whole: float) -> float:
    """Of four neighbouring weights of an output the two largest stay."""
    fours = weight.abs().view(len(weight), -1, 4)
    keep = torch.zeros_like(fours).scatter_(2, fours.topk(2, dim=2).indices, 1.0).view_as(weight)
    return _left(weight * (1 - keep), covariance, whole)


def _hybrids(size: int, weight: Tensor, covariance: Tensor, budget: float, whole: float) -> list[float]:
    errors = []
    for share in WAISTS:
        waist = int(share * size)
        for spec in _specs(size, budget, waist)[:1]:
            start = partial(_start, bases(spec))
            mean = weight.new_zeros(size)
            problem, E, D, encoded, *_ = fit_both(4, waist, 0, start, weight, mean, covariance, False)
            errors.append(problem.left(E, D, encoded) / (4 * whole))  # of one tile row, four rows
    return errors


def _int8(size: int, decay: float, weight: Tensor, x: Tensor) -> dict[str, Any]:
    """Dense FLOPs, but less time and next to no error: the point to beat where latency is the budget."""
    layer = Layer("int8", weight.float(), None, x.float(), x.float(), size)
    kernel = int8.KERNELS[0]
    y = kernel.run(int8.Spec(), kernel.pack(int8.Spec(), int8.fit(int8.Spec(), layer)), x.float())
    case = f"{size} -> {size}, decay {decay:g}, int8 at dense FLOPs"
    return {"case": case, "size": size, "decay": decay, "int8": relative_gap(y, x @ weight.T) ** 2}
