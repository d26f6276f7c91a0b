"""Source code of programs: a C++ function template or a Triton device function, one line per addition."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from basis_search.errors import BadInput
from basis_search.schemes.programs.program import (
    Coefficient,
    Program,
    Step,
    Term,
    exact,
)

MAX_STEPS = 1 << 14


def scheduled(program: Program) -> Program:
    """The same steps in an order with fewer live values: each time the ready step that frees the most values.

    Returns the program unchanged if the new order is no better.
    """
    first = program.inputs
    left = [0] * (first + len(program.steps))
    users: list[list[int]] = [[] for _ in left]
    for k, s in enumerate(program.steps):
        for v in {s.a, s.b}:
            left[v] += 1
            users[v].append(k)
    for t in program.outputs:
        if t.value >= 0:
            left[t.value] += 1 << 30  # outputs stay alive
    missing = [sum(v >= first for v in {s.a, s.b}) for s in program.steps]
    ready = [k for k, m in enumerate(missing) if m == 0]
    born = dict.fromkeys(range(first), 0)
    order: list[int] = []
    while ready:
        # ties go to the step with the youngest operands, which follows chains to their ends
        best = max(
            ready,
            key=lambda k: (
                sum(left[v] == 1 for v in {program.steps[k].a, program.steps[k].b}),
                born[program.steps[k].a] + born[program.steps[k].b],
                -k,
            ),
        )
        ready.remove(best)
        order.append(best)
        born[first + best] = len(order)
        for v in {program.steps[best].a, program.steps[best].b}:
            left[v] -= 1
        for k in users[first + best]:
            missing[k] -= 1
            if missing[k] == 0:
                ready.append(k)
    place = {i: i for i in range(-1, first)} | {first + k: first + at for at, k in enumerate(order)}
    steps = tuple(Step(place[s.a], s.alpha, place[s.b], s.beta) for s in (program.steps[k] for k in order))
    result = Program(first, steps, tuple(Term(place[t.value], t.coefficient) for t in program.outputs))
    return result if result.live < program.live else program


def cpp(program: Program, name: str, comment: str = "") -> str:
    """C++17 source of `template <typename V, typename S = float> inline void name(const V (&x)[in], V (&y)[out])`.

    V is a scalar or a vector type of the compiler (float, __m256, ...) with V + V, V - V, -V, and S * V where the
    program scales. All of x is read before y is written, so x and y may be the same memory.

    Raises:
        BadInput: the name is not an identifier, or the program has more than 16384 steps.
    """
    lines = _body(program, name, lambda c: f"S({_decimal(c)})")
    head = [f"// {line}" for line in _caption(program, comment)]
    read = [f"    const V x{i} = x[{i}];" for i in range(program.inputs) if i in _read(program)]
    made = [f"    const V {target} = {value};" for target, value in lines[: len(program.steps)]]
    results = ["V{}" if t.value < 0 else text for t, (_, text) in zip(program.outputs, lines[len(made) :], strict=True)]
    write = [f"    y[{j}] = {text};" for j, text in enumerate(results)]
    return "\n".join(
        [
            *head,
            "template <typename V, typename S = float>",
            f"inline void {name}(const V (&x)[{program.inputs}], V (&y)[{len(program.outputs)}]) {{",
            *read,
            *made,
            *write,
            "}",
            "",
        ]
    )


def triton(program: Program, name: str, comment: str = "") -> str:
    """Source of a Triton device function: `name(x0, x1, ...)` returns the tuple of outputs.

    The text imports nothing; paste it where `triton` is imported. The arguments are tensors of equal shape.

    Raises:
        BadInput: the name is not an identifier, or the program has more than 16384 steps.
    """
    lines = _body(program, name, _decimal)
    made = [f"    {target} = {value}" for target, value in lines[: len(program.steps)]]
    outputs = [
        "x0 * 0" if t.value < 0 else value for t, (_, value) in zip(program.outputs, lines[len(made) :], strict=True)
    ]
    arguments = ", ".join(f"x{i}" for i in range(program.inputs))
    head = [f"# {line}" for line in _caption(program, comment)]
    tail = ", ".join(outputs) + ("," if len(outputs) == 1 else "")
    return "\n".join([*head, "@triton.jit", f"def {name}({arguments}):", *made, f"    return {tail}", ""])


def _caption(program: Program, comment: str) -> list[str]:
    count = f"{program.additions} additions, {program.scalings} scalings, {program.live} values alive at most"
    return [*comment.splitlines(), count]


def _read(program: Program) -> set[int]:
    return {v for s in program.steps for v in (s.a, s.b)} | {t.value for t in program.outputs}


def _decimal(c: Coefficient) -> str:
    """A constant as text: exact if it is an integer, else to double precision."""
    value = Fraction(c)
    return str(value.numerator) if value.denominator == 1 else repr(float(value))


def _body(program: Program, name: str, constant: Callable[[Coefficient], str]) -> list[tuple[str, str]]:
    """(target, expression) of every step, then of every output."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise BadInput(f"{name!r} is not an identifier; use letters, digits and underscores")
    if len(program.steps) > MAX_STEPS:
        raise BadInput(
            f"a program of {len(program.steps)} steps is too long for source code; the limit is {MAX_STEPS} steps"
        )

    def value(i: int) -> str:
        return f"x{i}" if i < program.inputs else f"t{i - program.inputs}"

    def scaled(c: Coefficient, i: int) -> str:
        return value(i) if abs(c) == 1 else f"{constant(exact(abs(c)))} * {value(i)}"

    lines = []
    for k, s in enumerate(program.steps):
        lead, sign = "-" if s.alpha < 0 else "", "-" if s.beta < 0 else "+"
        lines.append((f"t{k}", f"{lead}{scaled(s.alpha, s.a)} {sign} {scaled(s.beta, s.b)}"))
    for j, t in enumerate(program.outputs):
        text = "0" if t.value < 0 else ("-" if t.coefficient < 0 else "") + scaled(t.coefficient, t.value)
        lines.append((f"y{j}", text))
    return lines
