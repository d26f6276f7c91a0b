"""Straight-line programs for linear maps y = M x, as data: v[k] = alpha v[a] + beta v[b], y[j] = c v[i]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from basis_search.errors import BadInput

Coefficient = int | Fraction
"""An exact rational number; integers are of type int."""


class Step(NamedTuple):
    """One addition: the new value alpha * v[a] + beta * v[b]."""

    a: int
    alpha: Coefficient
    b: int
    beta: Coefficient


class Term(NamedTuple):
    """A multiple of one value; value -1 with coefficient 0 is zero."""

    value: int
    coefficient: Coefficient


ZERO = Term(-1, 0)


def exact(value: Any) -> Coefficient:
    """A number as int or Fraction.

    Raises:
        BadInput: it is not an exact rational (a float must be an integer, because 0.1 is not exactly a tenth).
    """
    if isinstance(value, Fraction):
        return value.numerator if value.denominator == 1 else value
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return int(value)
    if isinstance(value, complex) and value.imag == 0:
        return exact(value.real)
    if hasattr(value, "numerator") and hasattr(value, "denominator"):
        return exact(Fraction(int(value.numerator), int(value.denominator)))
    raise BadInput(f"the coefficient {value!r} is not an exact rational; give an int or a fractions.Fraction")


def rows_of(matrix: Any) -> tuple[int, list[dict[int, Coefficient]]]:
    """(columns, sparse rows) of a matrix [rows, columns]: numpy, torch, or nested lists of ints and Fractions.

    Raises:
        BadInput: the matrix is empty or not two-dimensional, or an entry is not an exact rational.
    """
    if isinstance(matrix, torch.Tensor):
        matrix = matrix.detach().cpu().numpy()
    array = np.asarray(matrix) if isinstance(matrix, np.ndarray) else np.array(matrix, dtype=object)
    if array.ndim != 2 or 0 in array.shape:
        raise BadInput(f"a matrix [rows, columns] is needed, both at least 1, not an array of shape {array.shape}")
    rows = []
    for line in array:
        row = {int(k): exact(line[k]) for k in range(array.shape[1]) if line[k] != 0}
        rows.append(row)
    return int(array.shape[1]), rows


@dataclass(frozen=True)
class Program:
    """A straight-line program for y = M x.

    Values 0 .. inputs-1 are the inputs; step k computes value inputs + k from two earlier ones.

    Attributes:
        inputs: length of x.
        steps: the additions, in order.
        outputs: y[j] as a multiple of one value.
    """

    inputs: int
    steps: tuple[Step, ...]
    outputs: tuple[Term, ...]

    def __post_init__(self) -> None:
        for k, step in enumerate(self.steps):
            if not (0 <= step.a < self.inputs + k and 0 <= step.b < self.inputs + k):
                raise BadInput(
                    f"step {k} reads v[{step.a}] and v[{step.b}], but only v[0..{self.inputs + k - 1}] exist"
                )
        for j, term in enumerate(self.outputs):
            if not -1 <= term.value < self.inputs + len(self.steps):
                raise BadInput(f"output {j} reads v[{term.value}], which no step computes")

    @property
    def additions(self) -> int:
        """Additions and subtractions, one per step."""
        return len(self.steps)

    @cached_property
    def scalings(self) -> int:
        """Products by a constant other than 1 and -1; a multiple that is used twice counts once."""
        used = {(s.a, abs(s.alpha)) for s in self.steps} | {(s.b, abs(s.beta)) for s in self.steps}
        used |= {(t.value, abs(t.coefficient)) for t in self.outputs if t.value >= 0}
        return sum(1 for _, c in used if c != 1)

    @cached_property
    def negations(self) -> int:
        """Negations that no addition or subtraction absorbs: steps -a - b, and outputs that are minus a value."""
        return sum(1 for s in self.steps if s.alpha < 0 and s.beta < 0) + len(
            {t for t in self.outputs if t.coefficient < 0}
        )

    @property
    def depth(self) -> int:
        """The most additions on a path from an input to an output; the rounding error grows with it."""
        level = [0] * self.inputs
        for s in self.steps:
            level.append(1 + max(level[s.a], level[s.b]))
        return max((level[t.value] for t in self.outputs if t.value >= 0), default=0)

    @property
    def live(self) -> int:
        """The most values alive at once in the order of the steps, outputs included: the registers needed."""
        last = dict.fromkeys(range(self.inputs), -1)
        for k, s in enumerate(self.steps):
            last[s.a] = last[s.b] = k
        for t in self.outputs:
            last[t.value] = len(self.steps)
        alive = {i for i in range(self.inputs) if last[i] >= 0}
        most = len(alive)
        for k in range(len(self.steps)):
            alive.add(self.inputs + k)
            most = max(most, len(alive))
            alive = {i for i in alive if last.get(i, -1) > k}
        return most

    def __call__(self, x: Any) -> Any:
        """y [outputs, ...] for x [inputs, ...]: torch, numpy (object arrays too), or a sequence of numbers.

        Integers and Fractions stay exact; a Fraction coefficient times a float array is a float.

        Raises:
            BadInput: x does not have `inputs` rows.
        """
        if len(x) != self.inputs:
            raise BadInput(f"the program takes {self.inputs} inputs along the first axis, not {len(x)}")
        floating = (isinstance(x, torch.Tensor) and x.is_floating_point()) or (
            isinstance(x, np.ndarray) and x.dtype.kind == "f"
        )
        values = list(x)

        def times(c: Coefficient, v: Any) -> Any:
            if c == 1:
                return v
            return -v if c == -1 else (float(c) if floating else c) * v

        for a, alpha, b, beta in self.steps:
            left, right = times(alpha, values[a]), values[b]
            values.append(left - right if beta == -1 else left + times(beta, right))
        zero = 0 * values[0]
        result = [zero if t.value < 0 else times(t.coefficient, values[t.value]) for t in self.outputs]
        if isinstance(x, torch.Tensor):
            return torch.stack(result)
        return np.array(result, dtype=x.dtype) if isinstance(x, np.ndarray) else result

    def matrix(self) -> np.ndarray[Any, np.dtype[Any]]:
        """M [outputs, inputs], exact: an object array of ints and Fractions."""
        forms: list[dict[int, Coefficient]] = [{i: 1} for i in range(self.inputs)]
        for a, alpha, b, beta in self.steps:
            form: dict[int, Coefficient] = {i: alpha * c for i, c in forms[a].items()}
            for i, c in forms[b].items():
                form[i] = form.get(i, 0) + beta * c
            forms.append(form)
        result = np.zeros((len(self.outputs), self.inputs), dtype=object)
        for j, term in enumerate(self.outputs):
            if term.value >= 0:
                for i, c in forms[term.value].items():
                    result[j, i] = exact(term.coefficient * c)
        return result

    def computes(self, matrix: Any) -> bool:
        """Whether the program is the map of `matrix` [outputs, inputs], exactly."""
        columns, rows = rows_of(matrix)
        if (len(rows), columns) != (len(self.outputs), self.inputs):
            return False
        mine = self.matrix()
        return all({i: c for i, c in enumerate(mine[j]) if c != 0} == row for j, row in enumerate(rows))

    def permuted(self, inputs: Sequence[int] | None = None, outputs: Sequence[int] | None = None) -> Program:
        """The program whose input i is this one's input inputs[i], and whose output j is this one's outputs[j]."""
        steps, outs = self.steps, self.outputs
        if inputs is not None:
            if sorted(inputs) != list(range(self.inputs)):
                raise BadInput(f"{list(inputs)} is not a permutation of 0..{self.inputs - 1}")
            place = {old: new for new, old in enumerate(inputs)}
            steps = tuple(Step(place.get(s.a, s.a), s.alpha, place.get(s.b, s.b), s.beta) for s in steps)
            outs = tuple(Term(place.get(t.value, t.value), t.coefficient) for t in outs)
        if outputs is not None:
            outs = tuple(outs[j] for j in outputs)
        return Program(self.inputs, steps, outs)

    def transposed(self) -> Program:
        """The program of M^T, by reversing every edge (Tellegen's transposition principle).

        Without zero rows and columns it has outputs - inputs more additions than this one, up to unused steps.
        """
        steps: list[Step] = []
        parts: list[list[Term]] = [[] for _ in range(self.inputs + len(self.steps))]

        def collect(terms: list[Term]) -> Term:
            terms = [t for t in terms if t.coefficient != 0]
            if not terms:
                return ZERO
            total = terms[0]
            for term in terms[1:]:
                steps.append(Step(total.value, total.coefficient, term.value, term.coefficient))
                total = Term(len(self.outputs) + len(steps) - 1, 1)
            return total

        for j, term in enumerate(self.outputs):
            if term.value >= 0:
                parts[term.value].append(Term(j, term.coefficient))
        for k in reversed(range(len(self.steps))):
            s, adjoint = self.steps[k], collect(parts[self.inputs + k])
            if adjoint.value >= 0:
                parts[s.a].append(Term(adjoint.value, exact(s.alpha * adjoint.coefficient)))
                parts[s.b].append(Term(adjoint.value, exact(s.beta * adjoint.coefficient)))
        outputs = tuple(collect(parts[i]) for i in range(self.inputs))
        return Program(len(self.outputs), tuple(steps), outputs)

    def graph(self) -> Any:
        """The program as a networkx.DiGraph.

        Nodes ("x", i), ("t", k) and ("y", j); an edge carries its `coefficient`.
        """
        import networkx

        graph = networkx.DiGraph(inputs=self.inputs, outputs=len(self.outputs), additions=self.additions)

        def name(i: int) -> tuple[str, int]:
            return ("x", i) if i < self.inputs else ("t", i - self.inputs)

        graph.add_nodes_from(("x", i) for i in range(self.inputs))
        for k, s in enumerate(self.steps):
            for source, c in ((s.a, s.alpha), (s.b, s.beta)):
                before = graph.get_edge_data(name(source), ("t", k), {"coefficient": 0})["coefficient"]
                graph.add_edge(name(source), ("t", k), coefficient=exact(before + c))
        for j, t in enumerate(self.outputs):
            graph.add_node(("y", j))
            if t.value >= 0:
                graph.add_edge(name(t.value), ("y", j), coefficient=t.coefficient)
        return graph

    def __str__(self) -> str:
        def name(i: int) -> str:
            return f"x{i}" if i < self.inputs else f"t{i - self.inputs}"

        def scaled(c: Coefficient, i: int) -> str:
            return name(i) if abs(c) == 1 else f"{abs(c)}*{name(i)}"

        lines = []
        for k, s in enumerate(self.steps):
            lead, sign = "-" if s.alpha < 0 else "", "-" if s.beta < 0 else "+"
            lines.append(f"t{k} = {lead}{scaled(s.alpha, s.a)} {sign} {scaled(s.beta, s.b)}")
        for j, t in enumerate(self.outputs):
            value = "0" if t.value < 0 else ("-" if t.coefficient < 0 else "") + scaled(t.coefficient, t.value)
            lines.append(f"y{j} = {value}")
        return "\n".join(lines)
