"""Short straight-line programs for a matrix: common-subexpression elimination on M and on M^T.

By the transposition principle additions(M^T) = additions(M) + columns(M) - rows(M), so a program for M^T gives one
for M.
"""

from __future__ import annotations

import random
import time
from fractions import Fraction
from typing import Any

import numpy as np

from basis_search.errors import BadInput
from basis_search.schemes.programs.compose import simplified
from basis_search.schemes.programs.elimination import (
    Rows,
    improve,
    program_from,
    rows_from,
)
from basis_search.schemes.programs.program import (
    ZERO,
    Coefficient,
    Program,
    Term,
    exact,
    rows_of,
)

try:
    import basis_kernels.additions._cpu as _cpu
except ImportError:  # no compiler at install time: the Python form below is the same search with fewer rounds
    _cpu = None

PRIME = 2**61 - 1
DEFAULT_WORK = 12_000_000
"""Default effort per matrix and side, in pairs of entries counted, independent of the clock."""
MAX_ENTRIES = 1 << 16


def shorten(
    matrix: Any, seconds: float | None = None, seed: int = 0, start: Program | None = None, plain: bool = False
) -> Program:
    """A straight-line program for y = M x with few additions, verified exactly.

    Args:
        matrix: M [rows, columns] of ints or Fractions (numpy, torch or nested lists).
        seconds: time to spend; None for a fixed effort whose result depends only on the seed.
        seed: of the random restarts.
        start: a program for the same map to improve on, such as that of a Kronecker product.
        plain: use the Python form of the search even where the compiled one is installed.

    Returns:
        The program with the fewest (additions, scalings, negations) found.

    Raises:
        BadInput: an entry is not an exact rational, the matrix has more than 65536 non-zero entries, `seconds` is not
            positive, or `start` computes another map.
    """
    columns, rows = rows_of(matrix)
    entries = sum(len(row) for row in rows)
    if entries > MAX_ENTRIES:
        raise BadInput(f"the matrix has {entries} non-zero entries, more than {MAX_ENTRIES}; shorten parts of it")
    if seconds is not None and not seconds > 0:
        raise BadInput(f"seconds={seconds} leaves no time; give a positive number, or None for a fixed effort")
    if start is not None and not start.computes(matrix):
        raise BadInput("the program to start from computes another map than the matrix")
    naive = _deduplicated(columns, rows)
    found = [naive] if start is None else [naive, simplified(start)]
    share = None if seconds is None else seconds / 2
    for side in (False, True):  # the second search starts from the first one's result, transposed
        begun = min(found, key=_cost)
        better = _search(begun.transposed() if side else begun, share, 2 * seed + side, plain or _cpu is None)
        found.append(simplified(better.transposed() if side else better))
    best = min(found, key=_cost)
    if not best.computes(matrix):
        raise AssertionError("the shortened program does not compute its matrix")
    return best


def _cost(program: Program) -> tuple[int, int, int]:
    return program.additions, program.scalings, program.negations


def _deduplicated(columns: int, rows: list[dict[int, Coefficient]]) -> Program:
    """The rows summed one by one from left to right, proportional rows once."""
    kept: Rows = {}
    first: dict[tuple[tuple[int, Fraction], ...], int] = {}
    outputs: list[tuple[int, Coefficient]] = []
    for row in rows:
        if not row:
            outputs.append((-1, 0))
            continue
        lead = row[min(row)]
        key = tuple((k, Fraction(row[k]) / lead) for k in sorted(row))
        if key not in first:
            first[key] = len(kept)
            kept[-1 - len(kept)] = dict(row)
        same = first[key]
        outputs.append((same, exact(Fraction(lead) / kept[-1 - same][min(row)])))
    program = program_from(columns, len(kept), kept)
    terms = []
    for place, c in outputs:
        term = program.outputs[place] if place >= 0 else ZERO
        terms.append(Term(term.value, exact(c * term.coefficient)))
    return Program(columns, program.steps, tuple(terms))


def _search(start: Program, seconds: float | None, seed: int, plain: bool) -> Program:
    # the search has one row for all outputs that are multiples of the same value
    values = sorted({t.value for t in start.outputs if t.value >= start.inputs})
    if not values:
        return start
    body = Program(start.inputs, start.steps, tuple(Term(v, 1) for v in values))
    rows = rows_from(body)
    if plain:
        size = sum(len(row) ** 2 for row in rows.values()) + 20 * len(rows)
        short = _plain(body, rows, max(4, DEFAULT_WORK // 240 // size), seconds, seed)
    else:
        short = _compiled(body, rows, DEFAULT_WORK if seconds is None else -1, seconds or 0.0, seed)
    place = {v: short.outputs[k] for k, v in enumerate(values)}
    outputs = tuple(
        Term(place[t.value].value, exact(t.coefficient * place[t.value].coefficient)) if t.value in place else t
        for t in start.outputs
    )
    return Program(start.inputs, short.steps, outputs)


def _plain(start: Program, rows: Rows, rounds: int, seconds: float | None, seed: int) -> Program:
    rng, begun = random.Random(seed), time.monotonic()
    fresh = start.inputs + start.additions
    best = improve(rows, fresh, rounds if seconds is None else 1, rng)
    while seconds is not None and time.monotonic() - begun < seconds:
        best = improve(best, 1 + max([fresh, *best]), 4, rng)
    return program_from(start.inputs, len(start.outputs), best)


def _compiled(start: Program, rows: Rows, work: int, seconds: float, seed: int) -> Program:
    outputs = len(start.outputs)
    order = [-1 - j for j in range(outputs)] + [start.inputs + k for k in range(start.additions)]
    starts, values, residues = [0], [], []
    for key in order:
        for k, c in rows[key].items():
            values.append(k)
            residues.append(_residue(c))
        starts.append(len(values))
    keys, firsts, found, coefficients = _cpu.improve(
        start.inputs,
        outputs,
        np.array(starts, dtype=np.int64),
        np.array(values, dtype=np.int64),
        np.array(residues, dtype=np.uint64),
        work,
        seconds,
        seed & (2**64 - 1),
    )
    short: Rows = {}
    for at, key in enumerate(keys):
        part = slice(firsts[at], firsts[at + 1])
        name = -1 - key if key < outputs else start.inputs + key - outputs
        short[name] = {k: _rational(c) for k, c in zip(found[part], coefficients[part], strict=True)}
    return program_from(start.inputs, outputs, short)


def _residue(c: Coefficient) -> int:
    value = Fraction(c)
    if abs(value.numerator) >= 1 << 29 or value.denominator >= 1 << 29:
        raise BadInput(f"the coefficient {c} has a numerator or denominator of 2^29 or more; scale the matrix")
    return value.numerator * pow(value.denominator, -1, PRIME) % PRIME


def _rational(residue: int) -> Coefficient:
    """The fraction with numerator and denominator below 2^30 and that residue (Wang's rational reconstruction)."""
    if residue < 1 << 20:
        return residue
    if PRIME - residue < 1 << 20:
        return residue - PRIME
    r0, r1, t0, t1 = PRIME, residue, 0, 1
    while r1 >= 1 << 30:
        q = r0 // r1
        r0, r1, t0, t1 = r1, r0 - q * r1, t1, t0 - q * t1
    return exact(Fraction(r1, t1))
