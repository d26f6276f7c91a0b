"""The structure of a 2:4-sparse layer: whether the weights that are kept make up for those that are not."""

from dataclasses import dataclass

from basis_search.errors import BadInput


@dataclass(frozen=True)
class Spec:
    """Of every four consecutive weights of an output two are kept, as sparse tensor cores take them.

    Args:
        compensate: weights that are kept change to make up for those that are not, column after column, as in SparseGPT
            (Frantar and Alistarh 2023). False keeps them as they are and chooses by |w| sqrt(E x^2), as in Wanda (Sun
            et al. 2023).

    Raises:
        BadInput: not a bool.
    """

    compensate: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.compensate, bool):
            raise BadInput(
                f"sparse24: compensate is {self.compensate!r}, but it is a bool; true changes the weights that are "
                "kept to make up for the others, false leaves them as they are"
            )
