"""The structure of an fp8 layer: when the inputs' scale is chosen, and how many scales there are."""

from dataclasses import dataclass

from basis_search.errors import BadInput

SCALES = ("static", "dynamic")
PER = ("tensor", "row")


@dataclass(frozen=True)
class Spec:
    """Weights and inputs in e4m3: 1 bit of sign, 4 of exponent, 3 of mantissa, largest value 448.

    Args:
        scales: "static" takes the inputs' scale from the largest of the captured inputs and clips later ones that are
            larger; "dynamic" takes it from each call's own inputs, which costs one more pass over them.
        per: "tensor" has one scale of the weights and one of the inputs. "row" has one scale per output, and with
            dynamic scales one per row of the inputs.

    Raises:
        BadInput: another value.
    """

    scales: str = "static"
    per: str = "tensor"

    def __post_init__(self) -> None:
        for field, value, known in (("scales", self.scales, SCALES), ("per", self.per, PER)):
            if not isinstance(value, str) or value not in known:
                raise BadInput(f"fp8: {field} is {value!r}, but must be one of: {', '.join(known)}")
