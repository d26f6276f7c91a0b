"""Straight-line programs for y = M x with entries in {-1, 0, 1}: additions alone, shared sums formed once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import combinations

from torch import Tensor

from basis_search.schemes.programs.program import Program as ExactProgram


@dataclass(frozen=True)
class Program:
    """Values 0 .. inputs-1 are the inputs; step i makes value inputs + i.

    Attributes:
        inputs: how many values go in.
        steps: (left, right, sign): value = left + sign * right, sign in {-1, 1}.
        outputs: (value, sign) per output; value -1 stands for zero.
    """

    inputs: int
    steps: tuple[tuple[int, int, int], ...]
    outputs: tuple[tuple[int, int], ...]

    @property
    def additions(self) -> int:
        return len(self.steps)


def shortest(matrix: Tensor) -> Program | None:
    """A short program for `matrix` [outputs, inputs], or None if an entry is not -1, 0 or 1.

    Greedy pairing (Paar 1997, "Optimized arithmetic for Reed-Solomon encoders", with signs): again and again the pair
    of values that most rows add in the same relation becomes a value of its own. A row that is the negative of
    another shares it, and the sign stays with the output.
    """
    entries = matrix.tolist()
    if any(value not in (-1.0, 0.0, 1.0) for row in entries for value in row):
        return None
    width = matrix.shape[1]
    rows: list[dict[int, int]] = []
    outputs: list[tuple[int, int]] = []  # (row, sign)
    for entry in entries:
        row = {i: int(value) for i, value in enumerate(entry) if value}
        sign = next(iter(row.values())) if row else 1
        outputs.append((len(rows), sign))
        rows.append({i: value * sign for i, value in row.items()})

    steps: list[tuple[int, int, int]] = []
    while any(len(row) > 1 for row in rows):
        pairs: Counter[tuple[int, int, int]] = Counter()
        for items in {tuple(sorted(row.items())) for row in rows}:
            pairs.update((a, b, s * t) for (a, s), (b, t) in combinations(items, 2))
        # Ties go to the pair of oldest values: keeps the program deterministic and shallow.
        left, right, sign = min(pairs, key=lambda pair: (-pairs[pair], pair))
        made = width + len(steps)
        steps.append((left, right, sign))
        for row in rows:
            if left in row and right in row and row[left] * row[right] == sign:
                row[made] = row.pop(left)
                del row[right]
    ends = []
    for index, sign in outputs:
        value, own = next(iter(rows[index].items()), (-1, 1))
        ends.append((value, sign * own))
    return Program(width, tuple(steps), tuple(ends))


def converted(program: ExactProgram) -> Program:
    """The same map as steps `left + sign * right`: a sum of two negated values is kept without its sign.

    Raises:
        ValueError: it multiplies by something else than 1 and -1.
    """
    signs = [1] * program.inputs
    steps: list[tuple[int, int, int]] = []
    for a, alpha, b, beta in program.steps:
        left, right = alpha * signs[a], beta * signs[b]
        if abs(left) != 1 or abs(right) != 1:
            raise ValueError("the program is not of additions and subtractions alone")
        # l A + r B, kept as A + r B; as B - A for l = -1, r = 1; and as -(A + B) with its sign for later.
        steps.append((b, a, -1) if (left, right) == (-1, 1) else (a, b, 1 if left == right else -1))
        signs.append(-1 if (left, right) == (-1, -1) else 1)
    outputs = []
    for term in program.outputs:
        sign = term.coefficient * signs[term.value] if term.value >= 0 else 1
        if abs(sign) != 1:
            raise ValueError("the program is not of additions and subtractions alone")
        outputs.append((term.value, int(sign)))
    return Program(program.inputs, tuple(steps), tuple(outputs))
