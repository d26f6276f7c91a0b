"""Additions, time and rounding error of programs for known schemes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from basis_search.schemes import BilinearScheme, laderman, strassen, tensor_product, winograd
from basis_search.schemes.programs.additions import BilinearProgram, additions, tensor_product_programs
from basis_search.schemes.programs.alternative_basis import leading_coefficient, sparsify
from basis_search.schemes.programs.stability import growth_factor, stability

Row = dict[str, Any]


def program_row(case: str, scheme: BilinearScheme, program: BilinearProgram, seconds: float) -> Row:
    """Additions of a program against the naive count, with its rounding.

    Raises:
        AssertionError: the program does not compute the scheme.
    """
    if not program.computes(scheme):
        raise AssertionError(f"the program of {case} does not compute its scheme")
    rounding = stability(scheme, program)
    return {
        "case": case,
        "baseline": "naive",
        "ratio": round(program.additions / max(1, scheme.naive_additions), 4),
        "format": scheme.format,
        "rank": scheme.rank,
        "additions": program.additions,
        "left": program.left.additions,
        "right": program.right.additions,
        "decode": program.decode.additions,
        "scalings": program.scalings,
        "negations": program.negations,
        "naive": scheme.naive_additions,
        "seconds": round(seconds, 3),
        "growth": float(rounding.growth),
        "depth": rounding.depth,
        "mean_error": rounding.mean,
        "worst_error": rounding.worst,
        "direct_mean_error": rounding.direct_mean,
        "live": max(p.live for p in program.parts),
    }


def known() -> list[tuple[str, BilinearScheme]]:
    """Schemes known in closed form."""
    s, w = strassen(), winograd()
    return [
        ("strassen", s),
        ("winograd", w),
        ("laderman", laderman()),
        ("strassen x strassen", tensor_product(s, s)),
        ("strassen x winograd", tensor_product(s, w)),
        ("winograd x winograd", tensor_product(w, w)),
    ]


def program_rows(
    schemes: Iterable[tuple[str, BilinearScheme]] | None = None, seconds: float | None = None, seed: int = 0
) -> list[Row]:
    """One row per scheme: additions of its shortest program against the naive count, each verified exactly.

    Args:
        schemes: (case, scheme) pairs; `known()` by default.
        seconds: time per scheme; None for the fixed effort of `scheme.additions()`.
        seed: of the search.
    """
    rows = []
    for case, scheme in known() if schemes is None else schemes:
        begun = time.perf_counter()
        program = additions(scheme, seconds=seconds, seed=seed)
        rows.append(program_row(case, scheme, program, time.perf_counter() - begun))
    return rows


def composition_rows() -> list[Row]:
    """Winograd's form nested twice, composed from its parts without a search: 44 + 44 + 77 additions."""
    w = winograd()
    begun = time.perf_counter()
    one = additions(w)
    two = tensor_product_programs(one, one, w.shape, w.shape)
    return [program_row("winograd nested twice", tensor_product(w, w), two, time.perf_counter() - begun)]


def alternative_basis_rows(
    schemes: Iterable[tuple[str, BilinearScheme]] | None = None, seconds: float | None = None, seed: int = 0
) -> list[Row]:
    """One row per scheme in an alternative basis: additions per level of recursion and of the changes of basis."""
    rows = []
    for case, scheme in known()[:3] if schemes is None else schemes:
        begun = time.perf_counter()
        found = sparsify(scheme, seconds=seconds, seed=seed)
        elapsed = time.perf_counter() - begun
        if not found.computes(scheme):
            raise AssertionError(f"the alternative basis of {case} does not compute its scheme")
        n, m, p = scheme.shape
        square = n == m == p and scheme.rank > n * n
        rows.append(
            {
                "case": f"{case}, alternative basis",
                "baseline": "naive",
                "ratio": round(found.additions / max(1, scheme.naive_additions), 4),
                "format": scheme.format,
                "rank": scheme.rank,
                "additions": found.additions,
                "scalings": found.sparse.scalings,
                "change_additions": found.change_additions,
                "naive": scheme.naive_additions,
                "leading_coefficient": float(leading_coefficient(n, scheme.rank, found.additions)) if square else None,
                "seconds": round(elapsed, 3),
                "growth": float(growth_factor(scheme)),
            }
        )
    return rows


def rows(seconds: float | None = None, seed: int = 0) -> list[Row]:
    """Rows of every table in this module."""
    return [
        *program_rows(seconds=seconds, seed=seed),
        *composition_rows(),
        *alternative_basis_rows(seconds=seconds, seed=seed),
    ]
