"""Ternary bases stored with programs for U and W: library/data/ternary/<n>x<m>x<p>/<rank>.safetensors."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from basis_search.errors import BadInput
from basis_search.schemes.numerical.gauss_newton import Array
from basis_search.schemes.numerical.least_squares import largest_coefficient, product_tensor, residual
from basis_search.schemes.numerical.ternary_bases import (
    Format,
    TernaryPair,
    best_v,
    chain,
    start,
)
from basis_search.schemes.programs.program import Program, Step, Term
from basis_search.schemes.programs.shorten import shorten

RIDGE = 1e-5
"""For the stored V; the search uses a larger one to avoid terms that nearly cancel."""
TEMPERATURES = (0.0, 0.02, 0.05, 0.1)
"""Of the chains in turn."""

FOLDER = Path(__file__).parents[1] / "library" / "data" / "ternary"


@dataclass(frozen=True, eq=False)
class TernaryBases:
    """Stored bases with their record.

    Attributes:
        U [r, n m], W [r, n p]: entries -1, 0, 1. V [r, m p]: real. All float64.
        encoding: program of U. decoding: program of W^T.
        residual: ||T - [[U, V, W]]||^2 / ||T||^2.
        coefficient: largest |entry| with |u| = |v| = |w| in each term.
        price, seed: of the chain that found them.
    """

    U: Array
    V: Array
    W: Array
    encoding: Program
    decoding: Program
    residual: float
    coefficient: float
    price: float
    seed: int

    @property
    def additions(self) -> int:
        """Additions of both programs: for one tile of X and one of Y."""
        return self.encoding.additions + self.decoding.additions


@lru_cache(maxsize=64)
def known_ranks(n: int, m: int, p: int) -> tuple[int, ...]:
    """Ascending ranks of the stored ternary bases for that format."""
    return tuple(sorted(int(path.stem) for path in (FOLDER / f"{n}x{m}x{p}").glob("*.safetensors")))


@lru_cache(maxsize=256)
def load(n: int, m: int, p: int, rank: int) -> TernaryBases:
    """The stored ternary bases of that format and rank.

    Raises:
        BadInput: none are stored.
    """
    from safetensors import safe_open

    if rank not in known_ranks(n, m, p):
        raise BadInput(
            f"no ternary rank-{rank} bases are stored for {n}x{m}x{p}; stored ranks are "
            f"{', '.join(map(str, known_ranks(n, m, p))) or 'none'}"
        )
    with safe_open(FOLDER / f"{n}x{m}x{p}" / f"{rank}.safetensors", framework="numpy") as file:
        record = json.loads(file.metadata()["record"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    U, V, W = (tensors[name].astype(np.float64) for name in "UVW")
    encoding, decoding = (
        _program(width, tensors[f"{side} steps"], tensors[f"{side} outputs"])
        for side, width in (("encode", n * m), ("decode", rank))
    )
    return TernaryBases(U, V, W, encoding, decoding, **record)


def store(
    form: Format, pair: TernaryPair, price: float, seed: int, folder: Path = FOLDER, seconds: float = 4.0
) -> Path:
    """Writes bases with the best V in float32 and short programs; the record describes the rounded bases."""
    from safetensors.numpy import save_file

    U, W = pair.U.astype(np.float64), pair.W.astype(np.float64)
    V = best_v(U, W, form, RIDGE)[0].astype(np.float32)
    factors = (U, V.astype(np.float64), W)
    programs = {"encode": _additions_alone(pair.U, seconds / 2), "decode": _additions_alone(pair.W.T, seconds / 2)}
    tensors: dict[str, NDArray[np.generic]] = {"U": pair.U, "V": np.ascontiguousarray(V), "W": pair.W}
    for side, program in programs.items():
        tensors[f"{side} steps"] = np.array(program.steps, dtype=np.int32).reshape(-1, 4)
        tensors[f"{side} outputs"] = np.array(program.outputs, dtype=np.int32).reshape(-1, 2)
    record = {
        "residual": residual(product_tensor(*form), factors),
        "coefficient": largest_coefficient(factors),
        "price": price,
        "seed": seed,
    }
    path = folder / "x".join(map(str, form)) / f"{len(U)}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(path), metadata={"record": json.dumps(record, sort_keys=True)})
    known_ranks.cache_clear()
    load.cache_clear()
    return path


def _additions_alone(matrix: NDArray[np.int8], seconds: float) -> Program:
    """A short program without products by constants; twice a value is added in two steps.

    Raises:
        RuntimeError: a step uses a constant beyond 2.
    """
    short = shorten(matrix, seconds)
    steps: list[Step] = []
    place = list(range(short.inputs))
    for a, alpha, b, beta in short.steps:
        if abs(alpha) == 2:
            a, alpha, b, beta = b, beta, a, alpha
        single = 1 if beta > 0 else -1
        steps.append(Step(place[a], alpha, place[b], single))
        if abs(beta) == 2:
            steps.append(Step(short.inputs + len(steps) - 1, 1, place[b], single))
        place.append(short.inputs + len(steps) - 1)
    outputs = tuple(Term(place[t.value], t.coefficient) if t.value >= 0 else t for t in short.outputs)
    program = Program(short.inputs, tuple(steps), outputs)
    if program.scalings or program.transposed().scalings or not program.computes(matrix):
        raise RuntimeError("the program multiplies by constants beyond 2")
    return program


def search(
    form: Format, lowest: int, prices: Sequence[float], seconds: float, seed: int = 0
) -> dict[int, tuple[TernaryPair, float, int]]:
    """Per rank the pair of least residual found by chains from random starts, with its price and seed.

    Of two residuals within one percent the sparser pair wins.
    """
    deadline = time.monotonic() + seconds
    best: dict[int, tuple[TernaryPair, float, int]] = {}
    while True:
        rng = np.random.default_rng(seed)
        price = prices[seed % len(prices)]
        temperature = TEMPERATURES[seed // len(prices) % len(TEMPERATURES)]
        for rank, pair in chain(*_single(start(form, rng)), form, price, rng, lowest, temperature).items():
            if rank not in best or _is_better(pair, best[rank][0]):
                best[rank] = pair, price, seed
        seed += 1
        if time.monotonic() > deadline:
            return best


def _is_better(new: TernaryPair, old: TernaryPair) -> bool:
    if abs(new.residual - old.residual) < 0.01 * old.residual:
        return new.nonzeros < old.nonzeros
    return new.residual < old.residual


def _single(pair: tuple[Array, Array]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return pair[0].astype(np.float32), pair[1].astype(np.float32)


def _program(inputs: int, steps: NDArray[np.int32], outputs: NDArray[np.int32]) -> Program:
    return Program(
        inputs,
        tuple(Step(*map(int, step)) for step in steps),
        tuple(Term(*map(int, term)) for term in outputs),
    )
