"""The time model t ~ theta . f fitted to this machine, and its cross-validated error."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from basis_search.evaluation.timing import torch_threads
from basis_search.families.kronecker import KroneckerPattern, MeasuredCosts
from basis_search.families.kronecker.time_model import FEATURES, fit_costs

Rows = list[dict[str, Any]]
BATCHES = (1, 16, 128, 1024)


def patterns() -> list[KroneckerPattern]:
    """Factors of sides 256, 1024 and 4096: blocks of 2 to 128, d from 1 up, b = c, 2c, c / 2."""
    found = []
    for side, size in itertools.product((256, 1024, 4096), (2, 4, 8, 16, 32, 64, 128)):
        for d in (1, 4, 16, 64, side // size):
            if side % (size * d) == 0:
                a = side // (size * d)
                found += [KroneckerPattern(a, size, size, d), KroneckerPattern(a, 2 * size, size, d)]
                if size > 2:
                    found.append(KroneckerPattern(a, size // 2, size, d))
    return sorted(set(found))[::2]


def costs(device: str, threads: int) -> Rows:
    """theta, the median relative error, and the dense layer's seconds per product."""
    measured: dict[tuple[KroneckerPattern, int], float] = {}
    rates = []
    with torch_threads(threads):
        for batch in BATCHES:
            clock = MeasuredCosts(batch, device=device, rounds=5)
            for pattern in patterns():
                measured[pattern, batch] = clock(pattern)
            rates.append((batch, clock.dense(1024, 1024)))
    model = fit_costs(measured)
    rows: Rows = [
        {"case": f"seconds per {name}", "value": value} for name, value in zip(FEATURES, model.seconds, strict=True)
    ]
    rows.append({"case": f"median relative error, {len(measured)} measurements, 5 folds", "value": model.error})
    rows += [
        {"case": f"dense, batch {batch}: seconds per product", "value": seconds / (batch * 1024**2)}
        for batch, seconds in rates
    ]
    return rows


PARTS: dict[str, Callable[..., Rows]] = {"costs": costs}
