"""The structure of a weight-only quantised layer: bits per weight, and how many weights share a scale."""

from dataclasses import dataclass

from basis_search.errors import BadInput
from basis_search.layers.layer import LayerLike

GROUPS = (32, 64, 128, 256)
"""Group sizes of torch's operator for 4 bits."""


@dataclass(frozen=True)
class Spec:
    """Weights in whole numbers with scales; inputs stay in the layer's dtype.

    Args:
        bits: 8: codes in [-127, 127] and one scale per output. 4: codes in [0, 15], a scale and a zero point per output
            and group of inputs.
        group: inputs that share a scale: 32, 64, 128 or 256 with 4 bits, 0 (all) with 8.

    Raises:
        BadInput: other values.
    """

    bits: int = 8
    group: int = 0

    def __post_init__(self) -> None:
        if type(self.bits) is not int or self.bits not in (4, 8):
            raise BadInput(f"weight_only: bits is {self.bits!r}, but must be 8 or 4")
        known = GROUPS if self.bits == 4 else (0,)
        if type(self.group) is not int or self.group not in known:
            names = ", ".join(map(str, known))
            raise BadInput(
                f"weight_only: group is {self.group!r}, but with {self.bits} bits it must be one of: {names}"
            )

    def groups(self, layer: LayerLike) -> int:
        """Scales per output; the last group may be smaller."""
        return -(-layer.in_features // self.group) if self.bits == 4 else 1
