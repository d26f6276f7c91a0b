"""Progress reports of a search, and the check of its target rank and time."""

from __future__ import annotations

from dataclasses import dataclass

from basis_search.errors import BadInput
from basis_search.schemes.algebra.scheme import BilinearScheme


def check_budget(rank: int | None, seconds: float) -> None:
    """Checks the target rank and the time of a search.

    Raises:
        BadInput: a rank below 1, or seconds that are not positive and finite.
    """
    if rank is not None and rank < 1:
        raise BadInput(f"rank = {rank}, but a scheme has at least one product")
    if not 0 < seconds < float("inf"):
        raise BadInput(f"seconds = {seconds}, but must be positive and finite")


@dataclass(frozen=True)
class Progress:
    """The state of a search. `seconds` is wall time; `flips` and `cpu_seconds` are sums over all workers."""

    rank: int
    seconds: float
    cpu_seconds: float
    flips: int
    flips_per_second: float
    found: BilinearScheme | None  # the new best scheme, if this report announces one
