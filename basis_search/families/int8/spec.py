"""The structure of an int8 layer: 2^7 or 2^8 levels per input."""

from dataclasses import dataclass

from basis_search.errors import BadInput


@dataclass(frozen=True)
class Spec:
    """Int8 weights, one scale per output; inputs quantised at each call, one scale per call.

    Args:
        reduce_range: inputs take 128 levels instead of 256. x86 CPUs without VNNI add products in pairs in 16 bits:
            2 * 255 * 127 overflows there, 2 * 128 * 127 does not. True runs everywhere and is what torch's own dynamic
            linear does; False costs the same on a CPU with VNNI and quarters the error due to the inputs, so that
            `int8.best_spec(layer)` takes it there.

    Raises:
        BadInput: not a bool.
    """

    reduce_range: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.reduce_range, bool):
            raise BadInput(
                f"int8: reduce_range is {self.reduce_range!r}, but it is a bool; true means 7-bit inputs, false 8-bit"
            )
