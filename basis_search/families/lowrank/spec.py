"""The structure of a low-rank layer: its rank."""

from dataclasses import dataclass

from basis_search.errors import BadInput


@dataclass(frozen=True)
class Spec:
    """y = U (D x) + b with U [out, rank] and D [rank, in].

    Args:
        rank: rank of the product, at least 1.

    Raises:
        BadInput: the rank is not an integer of at least 1.
    """

    rank: int = 64

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise BadInput(f"lowrank: rank is {self.rank!r}, but an integer of at least 1 is needed")
