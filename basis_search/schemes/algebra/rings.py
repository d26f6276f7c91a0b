"""Coefficient rings: Z, ZT = {-1, 0, 1}, Z[1/2], Q, Z2 and Zp, Z[i], Z[i,1/2], Q[i], and R for floats."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from basis_search.errors import BadInput

Array = NDArray[Any]

MAX_PRIME = 1 << 20  # products of two residues and sums over any allowed rank stay exact in float64
MAX_BITS = 4096  # bits of a numerator or denominator
_NAMES = ("Z", "ZT", "Z[1/2]", "Q", "Z2", "Zp", "Z[i]", "Z[i,1/2]", "Q[i]", "R")
_ALIASES = {"C": "Q[i]", "Z[i]/2": "Z[i,1/2]", "Z[1/2,i]": "Z[i,1/2]", "Z/2": "Z2", "Z/2Z": "Z2"}


@dataclass(frozen=True)
class Gaussian:
    """An exact complex number re + im i with rational parts."""

    re: Fraction
    im: Fraction = Fraction(0)

    @classmethod
    def of(cls, value: Any) -> Gaussian:
        if isinstance(value, Gaussian):
            return value
        if isinstance(value, complex):
            return cls(exact_fraction(value.real), exact_fraction(value.imag))
        return cls(exact_fraction(value))

    @classmethod
    def parse(cls, text: str) -> Gaussian:
        """The number in '3/4', '-1/2i' or '1+2i', as `str` writes it.

        Raises:
            BadInput: any other text.
        """
        number = r"\d+(?:/\d+|\.\d+)?"
        match = re.fullmatch(rf"([+-]?{number})?(?:([+-]?)({number})?i)?", text[:MAX_BITS].replace(" ", ""))
        if not match or not text.strip():
            return cls(exact_fraction(text))
        real, sign, imaginary = match.groups()
        if not text.rstrip().endswith("i"):
            return cls(exact_fraction(real))
        if real and not sign:  # 2i: the pattern matched the number before i as the real part
            return cls(Fraction(0), exact_fraction(real))
        return cls(exact_fraction(real or "0"), exact_fraction(f"{sign}{imaginary or '1'}"))

    def __add__(self, other: Any) -> Gaussian:
        other = Gaussian.of(other)
        return Gaussian(self.re + other.re, self.im + other.im)

    def __sub__(self, other: Any) -> Gaussian:
        other = Gaussian.of(other)
        return Gaussian(self.re - other.re, self.im - other.im)

    def __rsub__(self, other: Any) -> Gaussian:
        return Gaussian.of(other) - self

    def __mul__(self, other: Any) -> Gaussian:
        other = Gaussian.of(other)
        return Gaussian(self.re * other.re - self.im * other.im, self.re * other.im + self.im * other.re)

    __radd__, __rmul__ = __add__, __mul__

    def __truediv__(self, other: Any) -> Gaussian:
        other = Gaussian.of(other)
        norm = other.re * other.re + other.im * other.im
        return self * Gaussian(other.re / norm, -other.im / norm)

    def __rtruediv__(self, other: Any) -> Gaussian:
        return Gaussian.of(other) / self

    def __neg__(self) -> Gaussian:
        return Gaussian(-self.re, -self.im)

    def __bool__(self) -> bool:
        return bool(self.re or self.im)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Gaussian):
            return self.re == other.re and self.im == other.im
        return self.im == 0 and self.re == other

    def __hash__(self) -> int:
        return hash(self.re) if not self.im else hash((self.re, self.im))

    def __complex__(self) -> complex:
        return complex(float(self.re), float(self.im))

    def __str__(self) -> str:
        if not self.im:
            return str(self.re)
        real = str(self.re) if self.re else ""
        return f"{real}{'+' if self.im > 0 and real else ''}{self.im}i"


def exact_fraction(value: Any) -> Fraction:
    """An int, a Fraction, text such as '3/4', or a float that is a short binary fraction, as a Fraction.

    Raises:
        BadInput: anything else.
    """
    if isinstance(value, Fraction):
        return value
    if isinstance(value, int | np.integer):
        return Fraction(int(value))
    if isinstance(value, str):
        if len(value) > MAX_BITS // 3 or not re.fullmatch(r"\s*[+-]?\d+\s*(/\s*\d+\s*|\.\d+\s*)?", value):
            raise BadInput(f"coefficient {value[:40]!r} is not a number such as -1, 3/4 or 0.5")
        try:
            return Fraction(value.replace(" ", "").strip())
        except ZeroDivisionError:
            raise BadInput(f"coefficient {value[:40]!r} divides by zero") from None
    if isinstance(value, float | np.floating):
        if not np.isfinite(value):
            raise BadInput(f"coefficient {value} is not finite; exact schemes need numbers such as -1, 3/4 or 0.5")
        fraction = Fraction(float(value))
        if fraction.denominator > 1 << 20:
            raise BadInput(
                f"coefficient {value!r} is not a short binary fraction; pass Fraction(1, 3) or '1/3' for an exact "
                "ring, or use ring 'R'"
            )
        return fraction
    raise BadInput(f"coefficient of type {type(value).__name__} is not a number such as -1, 3/4 or 0.5")


@dataclass(frozen=True)
class Ring:
    """A coefficient ring: its characteristic (0 or a prime), its denominators, and whether it contains i."""

    name: str
    characteristic: int = 0
    denominators: str = "1"  # "1", "2" (powers of two) or "any"
    complex: bool = False
    exact: bool = True

    def coerce(self, values: Any, what: str) -> Array:
        """`values` (rows of numbers or strings such as '1/2', or an array) as a read-only array in the ring's storage.

        Storage: int64 for Z, ZT and Zp; `Fraction` objects for Z[1/2] and Q; `Gaussian` objects for the complex rings;
        float64 for R.

        Raises:
            BadInput: a coefficient is not in the ring; `what` names the matrix in the message.
        """
        array = np.asarray(values)
        if array.ndim != 2:
            raise BadInput(f"{what} has shape {array.shape}, but a matrix [rank, entries] is needed")
        if not self.exact:
            array = np.array(array, dtype=np.float64)
            if not np.isfinite(array).all():
                raise BadInput(f"{what} holds NaN or infinite coefficients")
        elif self.complex or self.denominators != "1":
            array = self._objects(array, what)
        else:
            array = self._integers(array, what)
        array.flags.writeable = False
        return array

    def _integers(self, array: Array, what: str) -> Array:
        if array.dtype.kind in "fOUc":
            fractions = [exact_fraction(x.re if isinstance(x, Gaussian) and not x.im else x) for x in array.flat]
            for x in fractions:
                if x.denominator != 1 or abs(x.numerator) >= 1 << 62:
                    raise BadInput(f"{what} holds {x}, which is not in the ring {self.name} ({self.describe()})")
            array = np.array([x.numerator for x in fractions], dtype=np.int64).reshape(array.shape)
        elif array.dtype.kind not in "biu" or (array.dtype == np.uint64 and array.size and array.max() >= 1 << 62):
            raise BadInput(f"{what} has dtype {array.dtype}, which is not in the ring {self.name} ({self.describe()})")
        array = np.array(array, dtype=np.int64, order="C")
        if array.size:
            low, high = int(array.min()), int(array.max())
            least, most = (0, self.characteristic - 1) if self.characteristic else (-(1 << 62), 1 << 62)
            if self.name == "ZT":
                least, most = -1, 1
            if low < least or high > most:
                bad = low if low < least else high
                hint = f"; reduce_mod({self.characteristic}) brings integers there" if self.characteristic else ""
                raise BadInput(f"{what} holds {bad}, which is not in the ring {self.name} ({self.describe()}){hint}")
        return array

    def _objects(self, array: Array, what: str) -> Array:
        result = np.empty(array.shape, dtype=object)
        flat = result.reshape(-1)
        converted: dict[Any, Gaussian | Fraction] = {}  # most coefficients are equal to one of a few
        for k, value in enumerate(array.ravel().tolist()):
            if type(value) not in (int, Fraction, Gaussian):
                flat[k] = self._object(value, what)
                continue
            found = converted.get(value)
            if found is None:
                found = converted[value] = self._object(value, what)
            flat[k] = found
        return result

    def _object(self, value: Any, what: str) -> Gaussian | Fraction:
        number = Gaussian.of(value)
        for part in (number.re, number.im):
            power_of_two = part.denominator & (part.denominator - 1) == 0
            wrong = (self.denominators == "1" and part.denominator != 1) or (
                self.denominators == "2" and not power_of_two
            )
            if wrong or (number.im and not self.complex):
                raise BadInput(f"{what} holds {number}, which is not in the ring {self.name} ({self.describe()})")
            if max(part.numerator.bit_length(), part.denominator.bit_length()) > MAX_BITS:
                raise BadInput(f"{what} holds a coefficient of more than {MAX_BITS} bits, the limit")
        return number if self.complex else number.re

    def describe(self) -> str:
        """The ring's elements in words."""
        if not self.exact:
            return "real numbers, stored as float64"
        if self.characteristic:
            return f"residues 0 to {self.characteristic - 1}"
        kind = {"1": "integers below 2^62", "2": "fractions over powers of two", "any": "fractions"}[self.denominators]
        if self.name == "ZT":
            kind = "-1, 0 and 1"
        return f"Gaussian {kind}" if self.complex else kind


@lru_cache(maxsize=256)
def ring_named(name: str) -> Ring:
    """The ring of a name: Z, ZT, Z[1/2], Q, Z2, Z3, Z5, ... (also written GF(p)), Z[i], Z[i,1/2], Q[i], R.

    Raises:
        BadInput: an unknown name, or a modulus that is not a prime below 2^20.
    """
    if not isinstance(name, str):
        raise BadInput(f"the ring is {name!r}, but must be a name, one of {', '.join(_NAMES)}")
    spelled = _ALIASES.get(name.strip(), name.strip())
    match = re.fullmatch(r"(?:Z|GF\(|F|Z/)(\d{1,9})\)?", spelled)
    if match:
        prime = int(match.group(1))
        if prime >= MAX_PRIME or prime < 2 or any(prime % d == 0 for d in range(2, int(prime**0.5) + 1)):
            raise BadInput(f"the ring {name!r} needs a prime modulus below {MAX_PRIME}, not {prime}")
        return Ring(f"Z{prime}", characteristic=prime)
    known = {
        "Z": Ring("Z"),
        "ZT": Ring("ZT"),
        "Z[1/2]": Ring("Z[1/2]", denominators="2"),
        "Q": Ring("Q", denominators="any"),
        "Z[i]": Ring("Z[i]", complex=True),
        "Z[i,1/2]": Ring("Z[i,1/2]", complex=True, denominators="2"),
        "Q[i]": Ring("Q[i]", complex=True, denominators="any"),
        "R": Ring("R", denominators="any", exact=False),
    }
    if spelled not in known:
        near = difflib.get_close_matches(spelled, _NAMES, 1, 0.3)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise BadInput(f"unknown ring {name[:40]!r}: the rings are {', '.join(_NAMES)} with p a prime{hint}")
    return known[spelled]


def smallest_ring(matrices: tuple[Array, ...]) -> str:
    """The smallest ring of characteristic 0 that contains all coefficients of the matrices."""
    parts: list[Fraction] = []
    imaginary = False
    for matrix in matrices:
        if matrix.dtype.kind in "iu":
            parts += [Fraction(int(matrix.min())), Fraction(int(matrix.max()))] if matrix.size else []
            continue
        for value in matrix.flat:
            number = Gaussian.of(value)
            imaginary = imaginary or bool(number.im)
            parts += [number.re, number.im]
    denominator = max((x.denominator for x in parts), default=1)
    dyadic = all(x.denominator & (x.denominator - 1) == 0 for x in parts)
    if denominator == 1:
        if imaginary:
            return "Z[i]"
        return "ZT" if all(abs(x) <= 1 for x in parts) else "Z"
    if imaginary:
        return "Z[i,1/2]" if dyadic else "Q[i]"
    return "Z[1/2]" if dyadic else "Q"
