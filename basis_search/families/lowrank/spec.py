"""The structure of a low-rank layer: its rank."""

from dataclasses import dataclass

from basis_search.errors import BadInput


@dataclass(frozen=True)
class Spec:
    """Args: rank: columns of the first factor, >= 1. Raises BadInput if it is no such integer."""

    rank: int = 64

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise BadInput(f"lowrank: rank is {self.rank!r}, but an integer of at least 1 is needed")
