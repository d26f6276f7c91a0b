"""What a search may spend, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass

from basis_search.errors import BadInput
from basis_search.schemes.algebra.scheme import BilinearScheme


def check_budget(rank: int | None, seconds: float) -> None:
    """Refuses an aim or a time that no search can have.

    Raises:
        BadInput: a rank below 1, or seconds that are not positive and finite.
    """
    if rank is not None and rank < 1:
        raise BadInput(f"rank = {rank}, but a scheme has at least one product")
    if not 0 < seconds < float("inf"):
        raise BadInput(f"seconds = {seconds}, but a search takes a positive, finite number of them")


@dataclass(frozen=True)
class Progress:
    """How far a search is. `seconds` are those of the clock; `flips` and `cpu_seconds` sum over all workers."""

    rank: int
    seconds: float
    cpu_seconds: float
    flips: int
    flips_per_second: float
    found: BilinearScheme | None  # set when this report announces a new best
