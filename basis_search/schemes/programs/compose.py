"""Composition of straight-line programs, P Q and P (x) Q = (P (x) I)(I (x) Q), and their simplification."""

from __future__ import annotations

from fractions import Fraction

from basis_search.errors import BadInput
from basis_search.schemes.programs.program import (
    ZERO,
    Coefficient,
    Program,
    Step,
    Term,
    exact,
)


def _append(program: Program, values: list[Term], steps: list[Step], inputs: int) -> list[Term]:
    """Appends to `steps` those of `program` applied to `values` [program.inputs]; returns its outputs as terms."""
    known = list(values)

    def times(c: Coefficient, term: Term) -> Term:
        return Term(term.value, exact(c * term.coefficient)) if term.value >= 0 else ZERO

    for s in program.steps:
        left, right = times(s.alpha, known[s.a]), times(s.beta, known[s.b])
        if left.value < 0 or right.value < 0:
            known.append(right if left.value < 0 else left)
            continue
        steps.append(Step(left.value, left.coefficient, right.value, right.coefficient))
        known.append(Term(inputs + len(steps) - 1, 1))
    return [times(t.coefficient, known[t.value]) if t.value >= 0 else ZERO for t in program.outputs]


def chain(first: Program, second: Program) -> Program:
    """The program of M2 M1: `second` applied to the outputs of `first`.

    Raises:
        BadInput: the number of inputs of `second` differs from the number of outputs of `first`.
    """
    if second.inputs != len(first.outputs):
        raise BadInput(f"{len(first.outputs)} outputs cannot feed {second.inputs} inputs")
    steps: list[Step] = []
    middle = _append(first, [Term(i, 1) for i in range(first.inputs)], steps, first.inputs)
    outputs = tuple(_append(second, middle, steps, first.inputs))
    return Program(first.inputs, tuple(steps), outputs)


def kronecker(first: Program, second: Program) -> Program:
    """The program of P (x) Q with input i1 * q + i2 for entry (i1, i2), in the cheaper of the two orders.

    Additions: Q first, add(Q) * inputs(P) + add(P) * outputs(Q); P first, add(P) * inputs(Q) + add(Q) * outputs(P).
    """
    p, q = first, second
    second_first = q.additions * p.inputs + p.additions * len(q.outputs)
    first_first = p.additions * q.inputs + q.additions * len(p.outputs)
    size = p.inputs * q.inputs
    steps: list[Step] = []
    if second_first <= first_first:
        # [p.inputs][q.outputs], then [q.outputs][p.outputs]
        half = [_append(q, [Term(i * q.inputs + k, 1) for k in range(q.inputs)], steps, size) for i in range(p.inputs)]
        columns = [_append(p, [line[k] for line in half], steps, size) for k in range(len(q.outputs))]
        outputs = [columns[k][j] for j in range(len(p.outputs)) for k in range(len(q.outputs))]
    else:
        half = [_append(p, [Term(i * q.inputs + k, 1) for i in range(p.inputs)], steps, size) for k in range(q.inputs)]
        lines = [_append(q, [column[j] for column in half], steps, size) for j in range(len(p.outputs))]
        outputs = [term for line in lines for term in line]
    return Program(size, tuple(steps), tuple(outputs))


def simplified(program: Program) -> Program:
    """The same map without repeated and unused steps, and with signs absorbed into additions and subtractions."""
    return _with_fewest_negations(_pruned(program))


def _pruned(program: Program) -> Program:
    index = list(range(program.inputs))
    scale: list[Coefficient] = [1] * program.inputs
    made: dict[tuple[int, int, Fraction], tuple[int, Coefficient]] = {}
    steps: list[Step] = []
    for s in program.steps:
        a, alpha, b, beta = index[s.a], exact(s.alpha * scale[s.a]), index[s.b], exact(s.beta * scale[s.b])
        if a > b:
            a, alpha, b, beta = b, beta, a, alpha
        key = (a, b, Fraction(beta) / alpha)
        if key not in made:
            steps.append(Step(a, alpha, b, beta))
            made[key] = (program.inputs + len(steps) - 1, alpha)
        index.append(made[key][0])
        scale.append(exact(Fraction(alpha) / made[key][1]))
    outputs = [
        Term(index[t.value], exact(t.coefficient * scale[t.value])) if t.value >= 0 else ZERO for t in program.outputs
    ]
    needed = {t.value for t in outputs}
    for k in reversed(range(len(steps))):
        if program.inputs + k in needed:
            needed |= {steps[k].a, steps[k].b}
    place = {i: i for i in range(-1, program.inputs)}
    kept: list[Step] = []
    for k, s in enumerate(steps):
        if program.inputs + k in needed:
            kept.append(Step(place[s.a], s.alpha, place[s.b], s.beta))
            place[program.inputs + k] = program.inputs + len(kept) - 1
    return Program(program.inputs, tuple(kept), tuple(Term(place[t.value], t.coefficient) for t in outputs))


def _with_fewest_negations(program: Program) -> Program:
    """The program with the sign of each value chosen for fewest negations: greedy sign changes until none helps."""
    first = program.inputs
    signs = [1] * (first + len(program.steps))
    users: list[list[int]] = [[] for _ in signs]
    for k, s in enumerate(program.steps):
        users[s.a].append(k)
        users[s.b].append(k)
    outs: list[list[Term]] = [[] for _ in signs]
    for t in {t for t in program.outputs if t.value >= 0}:
        outs[t.value].append(t)

    def negates_both(k: int) -> bool:
        s, own = program.steps[k], signs[first + k]
        return s.alpha * signs[s.a] * own < 0 and s.beta * signs[s.b] * own < 0

    def negations_near(v: int) -> int:
        near = {v - first, *users[v]}
        return sum(negates_both(k) for k in near) + sum(t.coefficient * signs[v] < 0 for t in outs[v])

    improved = True
    while improved:
        improved = False
        for v in range(first, len(signs)):
            before = negations_near(v)
            signs[v] = -signs[v]
            if negations_near(v) < before:
                improved = True
            else:
                signs[v] = -signs[v]
    steps = []
    for k, s in enumerate(program.steps):
        own = signs[first + k]
        a, alpha, b, beta = s.a, s.alpha * signs[s.a] * own, s.b, s.beta * signs[s.b] * own
        if alpha < 0 < beta:
            a, alpha, b, beta = b, beta, a, alpha
        steps.append(Step(a, exact(alpha), b, exact(beta)))
    outputs = (Term(t.value, exact(t.coefficient * signs[t.value])) if t.value >= 0 else t for t in program.outputs)
    return Program(first, tuple(steps), tuple(outputs))
