"""Common-subexpression elimination: lowers sum(len(row) - 1) of sparse rows by naming pairs that several rows share.

A pair (i, j, rho) means v_i + rho v_j. Naming one that occurs in c rows saves c - 1 additions. The greedy step takes
the pair of largest (count - 1) + alpha * potential, where the potential is the change in sum(max(0, count - 1)) over
all pairs (after Martensson and Wagner, "The number of the beast", 2024). An iterated local search around it expands a
random part of the names and eliminates again. This is the Python form; the compiled form is the same search.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache

from basis_search.schemes.programs.program import (
    ZERO,
    Coefficient,
    Program,
    Step,
    Term,
    exact,
)

Row = dict[int, Coefficient]
Rows = dict[int, Row]
"""Rows by key: a key j < 0 is output -1 - j; any other key is the value that the row defines."""
Pair = tuple[int, int, Coefficient]


@lru_cache(maxsize=1 << 16)
def _quotient(a: Coefficient, b: Coefficient) -> Coefficient:
    return exact(Fraction(a) / b)


def _pairs(row: Row) -> Iterator[Pair]:
    terms = sorted(row.items())
    for x, (i, ci) in enumerate(terms):
        for j, cj in terms[x + 1 :]:
            yield i, j, _quotient(cj, ci)


def length(rows: Rows) -> int:
    """The number of additions in the rows."""
    return sum(max(0, len(row) - 1) for row in rows.values())


def _rows_by_pair(rows: Rows) -> dict[Pair, set[int]]:
    where: dict[Pair, set[int]] = {}
    for key, row in rows.items():
        for pair in _pairs(row):
            where.setdefault(pair, set()).add(key)
    return where


def _replace(rows: Rows, key: int, pair: Pair, name: int) -> Row:
    row = dict(rows[key])
    coefficient = row.pop(pair[0])
    del row[pair[1]]
    row[name] = coefficient
    return row


def _potential(rows: Rows, where: dict[Pair, set[int]], pair: Pair) -> int:
    lost: dict[Pair, int] = {}
    gained: dict[Pair, int] = {}
    i, j, _ = pair
    for key in where[pair]:
        row = rows[key]
        for k, c in row.items():
            if k in (i, j):
                continue
            for x in (i, j):
                old = (x, k, _quotient(c, row[x])) if x < k else (k, x, _quotient(row[x], c))
                lost[old] = lost.get(old, 0) + 1
            new = (k, -1, _quotient(c, row[i]))
            gained[new] = gained.get(new, 0) + 1
    before = sum(max(0, len(where[p]) - 1) - max(0, len(where[p]) - 1 - c) for p, c in lost.items())
    return sum(c - 1 for c in gained.values()) - before


def eliminate(rows: Rows, fresh: int, rng: random.Random | None = None, alpha: float = 0.0) -> int:
    """Names pairs greedily until none occurs twice, changing `rows` in place; returns the next unused name.

    Ties are broken at random, or without `rng` in favour of the pair of oldest values.
    """
    where = _rows_by_pair(rows)
    while True:
        most = max((len(keys) for keys in where.values()), default=0)
        if most < 2:
            return fresh
        best = sorted((p for p, keys in where.items() if len(keys) == most), key=lambda p: (p[0], p[1], float(p[2])))
        pair = best[0] if rng is None else rng.choice(best)
        if rng is not None and alpha > 0 and len(best) > 1:
            some = best if len(best) <= 12 else rng.sample(best, 12)
            pair = max(some, key=lambda p: alpha * _potential(rows, where, p) + 1e-3 * rng.random())
        for key in sorted(where[pair]):
            for old in _pairs(rows[key]):
                where[old].discard(key)
                if not where[old]:
                    del where[old]
            rows[key] = _replace(rows, key, pair, fresh)
            for new in _pairs(rows[key]):
                where.setdefault(new, set()).add(key)
        rows[fresh] = {pair[0]: 1, pair[1]: pair[2]}
        where.setdefault(pair, set()).add(fresh)
        fresh += 1


def inline(rows: Rows, name: int) -> None:
    """Replaces `name` by its row wherever it is used, and removes it."""
    body = rows.pop(name)
    for row in rows.values():
        c = row.pop(name, None)
        if c is None:
            continue
        for k, b in body.items():
            total = exact(row.get(k, 0) + c * b)
            if total == 0:
                del row[k]
            else:
                row[k] = total


def inline_single_uses(rows: Rows) -> None:
    """Inlines every name that is used at most once or that is a multiple of a single value."""
    while True:
        uses: dict[int, int] = {}
        for row in rows.values():
            for k in row:
                uses[k] = uses.get(k, 0) + 1
        idle = [k for k, row in rows.items() if k >= 0 and (uses.get(k, 0) < 2 or len(row) < 2)]
        if not idle:
            return
        inline(rows, idle[0])


def improve(rows: Rows, fresh: int, rounds: int, rng: random.Random) -> Rows:
    """The shortest rows found in `rounds` of expanding a random part of the names and eliminating again."""
    eliminate(rows, fresh, rng)
    inline_single_uses(rows)
    best, cost = rows, length(rows)
    for _ in range(rounds):
        trial = {key: dict(row) for key, row in best.items()}
        names = sorted(k for k in trial if k >= 0)
        share = rng.choice((0.1, 0.2, 0.3, 0.5, 1.0))
        for name in names:
            if rng.random() < share:
                inline(trial, name)
        eliminate(trial, 1 + max(trial, default=0) + fresh, rng, rng.choice((0.0, 0.1, 0.3)))
        inline_single_uses(trial)
        if length(trial) <= cost:
            best, cost = trial, length(trial)
    return best


def rows_from(program: Program) -> Rows:
    """The rows of a program: one per output and one per step."""
    rows: Rows = {}
    for k, s in enumerate(program.steps):
        row: Row = {s.a: s.alpha}
        row[s.b] = exact(row.get(s.b, 0) + s.beta)
        rows[program.inputs + k] = {i: c for i, c in row.items() if c != 0}
    for j, t in enumerate(program.outputs):
        rows[-1 - j] = {t.value: t.coefficient} if t.value >= 0 else {}
    return rows


def program_from(inputs: int, outputs: int, rows: Rows) -> Program:
    """The program of a set of rows, each summed from left to right, with names before their uses."""
    steps: list[Step] = []
    made: dict[int, Term] = {i: Term(i, 1) for i in range(inputs)}

    def build(key: int) -> Term:
        row, total = rows[key], ZERO
        for k in sorted(row, key=lambda k: (made[k].value, k)):
            term = Term(made[k].value, exact(row[k] * made[k].coefficient))
            if term.value < 0:
                continue
            if total.value >= 0:
                steps.append(Step(total.value, total.coefficient, term.value, term.coefficient))
                term = Term(inputs + len(steps) - 1, 1)
            total = term
        return total

    for key in sorted(k for k in rows if k >= 0):
        stack = [key]
        while stack:
            waiting = [k for k in rows[stack[-1]] if k not in made]
            if waiting:
                stack.extend(waiting)
            else:
                done = stack.pop()
                if done not in made:
                    made[done] = build(done)
    results = tuple(build(-1 - j) for j in range(outputs))
    return Program(inputs, tuple(steps), results)
