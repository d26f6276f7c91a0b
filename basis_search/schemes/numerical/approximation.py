"""Approximate real rank-r bases of the matrix product: min ||T - [[U, V, W]]||^2 + ridge (|U|^2 + |V|^2 + |W|^2)."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from basis_search.errors import BadInput
from basis_search.schemes.algebra.factor_orders import factor_permutations
from basis_search.schemes.algebra.scheme import BilinearScheme
from basis_search.schemes.numerical import starts
from basis_search.schemes.numerical.gauss_newton import Array
from basis_search.schemes.numerical.least_squares import (
    Factors,
    Fit,
    alternate,
    balance,
    drop_one,
    largest_coefficient,
    objective,
    polish,
    product_tensor,
    residual,
)

LARGEST_SIDE = 8

FOLDER = Path(__file__).parents[1] / "library" / "data" / "approximate"
"""<n>x<m>x<p>/<rank>.safetensors: U, V, W in float32 with their record."""


@dataclass(frozen=True, eq=False)
class Approximation:
    """Stored bases with their record.

    Attributes:
        U [r, n m], V [r, m p], W [r, n p]: vec(C) ~ W^T ((U vec A) * (V vec B)), row-major; float64.
        residual: ||T - [[U, V, W]]||^2 / ||T||^2.
        ridge: of the fit.
        found: how they were found. Searches stop by wall time, so a seed alone does not reproduce them; `approximate`
            starts from them.
        coefficient: largest |entry| with |u| = |v| = |w| in each term.
    """

    U: Array
    V: Array
    W: Array
    residual: float
    ridge: float
    found: str
    coefficient: float


@lru_cache(maxsize=64)
def known_ranks(n: int, m: int, p: int) -> tuple[int, ...]:
    """Ascending ranks of the stored bases for that format or a permutation of it."""
    folders = {FOLDER / "x".join(map(str, form)) for form in permutations((n, m, p))}
    return tuple(sorted({int(path.stem) for folder in folders for path in folder.glob("*.safetensors")}))


@lru_cache(maxsize=256)
def load(n: int, m: int, p: int, rank: int) -> Approximation:
    """The stored bases of that format and rank, permuted from another order of the sides if necessary.

    Raises:
        BadInput: none are stored.
    """
    if rank not in known_ranks(n, m, p):
        raise BadInput(
            f"no rank-{rank} bases are stored for {n}x{m}x{p}; stored ranks are "
            f"{', '.join(map(str, known_ranks(n, m, p))) or 'none'}: find others with bs.schemes.approximate"
        )
    found = []
    for a, b, c in sorted(set(permutations((n, m, p)))):
        form = (a, b, c)
        path = FOLDER / "x".join(map(str, form)) / f"{rank}.safetensors"
        if path.exists():
            U, V, W, record = _read(path)
            factors = next(f for own, f in factor_permutations(U, V, W, form) if own == (n, m, p))
            found.append(Approximation(*factors, **record))
    return min(found, key=lambda bases: bases.residual)


def _read(path: Path) -> tuple[Array, Array, Array, dict[str, Any]]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        U, V, W = (file.get_tensor(name).astype(np.float64) for name in "UVW")
        return U, V, W, json.loads(file.metadata()["record"])


def store(n: int, m: int, p: int, factors: Factors, ridge: float, found: str, folder: Path = FOLDER) -> Path:
    """Writes bases in float32 with their record, whose residual is that of the rounded bases."""
    from safetensors.numpy import save_file

    U, V, W = (np.ascontiguousarray(f.astype(np.float32)) for f in factors)
    stored = (U.astype(np.float64), V.astype(np.float64), W.astype(np.float64))
    record = {
        "residual": residual(product_tensor(n, m, p), stored),
        "ridge": ridge,
        "found": found,
        "coefficient": largest_coefficient(stored),
    }
    path = folder / f"{n}x{m}x{p}" / f"{len(U)}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"U": U, "V": V, "W": W}, str(path), metadata={"record": json.dumps(record, sort_keys=True)})
    return path


def approximate(
    n: int, m: int, p: int, rank: int, ridge: float = 1e-3, seconds: float = 60, seed: int = 0
) -> BilinearScheme:
    """The best bounded real bases of rank `rank` for an n x m by m x p product found in `seconds`.

    The search starts from stored bases of that format and rank, if there are any, and is never worse than they are at
    `ridge`; then in turn from exact schemes of the format after random changes of basis, from products of bases of
    smaller formats, and from noise. Each start is fitted by alternating least squares and damped Newton steps; while it
    has more than `rank` terms, one is dropped and the rest fitted again.

    Args:
        n, m, p: the format, 1 to 8 each.
        rank: number of products, from 1 to n m p.
        ridge: weight of the squared coefficients; 1e-3 bounds coefficients near 3, 1e-2 near 2.
        seconds: wall time; at least one start is always finished.
        seed: of the starts. The result is reproducible only where the search ends before the time is over, as it does
            for an exact scheme.

    Returns:
        A scheme over the ring "R" with terms balanced to |u| = |v| = |w|.

    Raises:
        BadInput: a size, the rank, the ridge or the time is out of range.
    """
    for name, size in (("n", n), ("m", m), ("p", p)):
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= LARGEST_SIDE:
            raise BadInput(f"approximate: {name} is {size!r}, but an integer from 1 to {LARGEST_SIDE} is needed")
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= n * m * p:
        raise BadInput(
            f"approximate: rank is {rank!r}, but an integer from 1 to {n * m * p}, the rank of the standard "
            f"{n}x{m}x{p} algorithm, is needed"
        )
    if not ridge > 0 or not np.isfinite(ridge):
        raise BadInput(f"approximate: ridge is {ridge}, but a positive number is needed; 1e-3 is usual")
    if not seconds > 0:
        raise BadInput(f"approximate: seconds is {seconds}, but a positive time is needed")
    T = product_tensor(n, m, p)
    form = (n, m, p)
    exact = starts.exact(form, rank)
    if len(exact[0][0]) == rank:
        U, V, W = exact[0]
        return BilinearScheme(n, m, p, U, V, W, "R")
    rng = np.random.default_rng(seed)
    deadline = time.monotonic() + seconds
    best: Fit | None = None
    if rank in known_ranks(n, m, p):
        stored = load(n, m, p, rank)
        factors = (stored.U, stored.V, stored.W)
        fits = [Fit(factors, objective(T, factors, ridge)), _chain(T, factors, rank, ridge, 1, deadline)]
        best = min(fits, key=lambda fit: fit.value)
    turn = 0
    while best is None or time.monotonic() < deadline:
        # the first chain starts from the scheme of fewest terms itself, later ones from other points of the orbits
        factors = starts.moved(exact[turn // 3 % len(exact)], form, rng, 0.0 if turn == 0 else starts.BASIS_NOISE)
        if turn % 3 == 1:
            factors = starts.product(form, rank, ridge, rng) or factors
        elif turn % 3 == 2:
            factors = starts.noise(form, rank, rng)
        fit = _chain(T, factors, rank, ridge, 1 + turn // 6, deadline)
        if best is None or fit.value < best.value:
            best = fit
        turn += 1
    U, V, W = balance(best.factors)
    return BilinearScheme(n, m, p, U, V, W, "R")


def _chain(T: Array, factors: Factors, rank: int, ridge: float, width: int, deadline: float) -> Fit:
    """The best fit of `rank` terms, dropping one term at a time from `factors`, with a beam of `width` fits."""
    sweeps, steps = (20, 40) if len(factors[0]) > rank else (200, 200)
    factors = polish(T, alternate(T, factors, ridge, sweeps), ridge, steps, deadline)
    fits = [Fit(factors, objective(T, factors, ridge))]
    while len(fits[0].factors[0]) > rank:
        # past the deadline polish() returns at once, so the chain still ends
        fits = drop_one(T, fits, ridge, width, deadline)
    return fits[0]
