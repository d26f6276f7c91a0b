"""plinopt's files: a scheme as three sparse matrices (.sms) or three straight-line programs (.slp)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from basis_search.errors import BadInput
from basis_search.schemes.algebra.rings import MAX_BITS, exact_fraction
from basis_search.schemes.files.identify import MAX_COEFFICIENTS, Matrices, check_size
from basis_search.schemes.files.readers import read_limited
from basis_search.schemes.programs.expressions import parse_term


def read_plinopt(path: Path, name: str | None) -> Matrices:
    """X_L and X_R [r, dimension] and X_P [dimension, r] as .sms or .slp; X-ALT_* need X-CoB_* in the same folder."""
    match = re.fullmatch(r"(.*?)(-ALT|-CoB)?_([LRP])", path.stem)
    if not match:
        raise BadInput(f"{path.name}: plinopt's files end in _L, _R and _P; give one of the three")
    stem, alternative, _ = match.groups()

    def matrix(letter: str, infix: str = "") -> list[list[Fraction]]:
        part = path.with_name(f"{stem}{infix}_{letter}{path.suffix}")
        text = read_limited(part).decode()
        return _sparse(text, part.name) if path.suffix.lower() == ".sms" else _program_matrix(text)

    if alternative:  # L = ALT_L CoB_L, R = ALT_R CoB_R, P = CoB_P ALT_P
        L, R = (_times(matrix(x, "-ALT"), matrix(x, "-CoB")) for x in "LR")
        P = _times(matrix("P", "-CoB"), matrix("P", "-ALT"))
    else:
        L, R, P = (matrix(x) for x in "LRP")
    rank = len(L)
    # a program does not state its number of inputs: unused trailing inputs are zero columns
    P = [row + [Fraction(0)] * (rank - len(row)) for row in P]
    return Matrices(L, R, [list(column) for column in zip(*P, strict=True)], rows=True)


def _sparse(text: str, what: str) -> list[list[Fraction]]:
    lines = [line.split("#")[0].split() for line in text.splitlines()]
    lines = [words for words in lines if words]
    if not lines or len(lines[0]) < 2 or not all(re.fullmatch(r"\d{1,9}", word) for word in lines[0][:2]):
        raise BadInput(f"{what}: the first line must give rows and columns, as in '7 4 R'")
    rows, columns = int(lines[0][0]), int(lines[0][1])
    check_size(rows, columns, what) if rows > columns else check_size(columns, rows, what)
    matrix = [[Fraction(0)] * columns for _ in range(rows)]
    for words in lines[1:]:
        if words[:2] == ["0", "0"]:
            break
        if len(words) != 3 or not words[0].isdigit() or not words[1].isdigit():
            raise BadInput(f"{what}: {' '.join(words)[:40]!r} is not an entry 'row column value'")
        i, j = int(words[0]), int(words[1])
        if not 1 <= i <= rows or not 1 <= j <= columns:
            raise BadInput(f"{what}: entry {i} {j} is outside the declared size {rows} x {columns}")
        matrix[i - 1][j - 1] = exact_fraction(words[2])
    return matrix


def _program_matrix(text: str) -> list[list[Fraction]]:
    used = [int(x) for x in re.findall(r"\bi(\d{1,6})\b", text)]
    columns = max(used, default=-1) + 1
    check_size(max(columns, 1), 1, "the straight-line program")
    forms = run_program(text, columns)
    check_size(max(len(forms), columns), min(len(forms), columns), "the straight-line program")
    return [[form.get(j, Fraction(0)) for j in range(columns)] for form in forms]


def _times(left: list[list[Fraction]], right: list[list[Fraction]]) -> list[list[Fraction]]:
    if len(left[0]) != len(right):
        raise BadInput(f"the alternative basis does not fit: {len(left[0])} columns meet {len(right)} rows")
    rows = []
    for row in left:
        total = [Fraction(0)] * len(right[0])
        for c, other in zip(row, right, strict=True):
            if c:
                total = [x + c * y if y else x for x, y in zip(total, other, strict=True)]
        rows.append(total)
    return rows


def run_program(text: str, inputs: int) -> list[dict[int, Fraction]]:
    """The outputs o0, o1, ... of a straight-line program such as `x1:=i0-i3; o0:=x1/2;` as linear forms in i0, i1, ...

    Raises:
        BadInput: a statement that is not an assignment of a linear form, an unknown name, or a missing output.
    """
    known: dict[str, dict[int, Fraction]] = {f"i{k}": {k: Fraction(1)} for k in range(inputs)}
    outputs: dict[int, dict[int, Fraction]] = {}
    work = 0
    for statement in _statements(text):
        name, _, right = statement.partition(":=")
        name = name.strip()
        if not right or not re.fullmatch(r"[A-Za-z]\d{1,6}", name):
            raise BadInput(f"{statement.strip()[:40]!r} is not an assignment such as x1:=i0-i3")
        term = parse_term(right, lambda token: ("v", (ord(token[0]), int(re.sub(r"\D", "", token)))))
        value: dict[int, Fraction] = {}
        for (letter, number), c in term.forms.get("v", {}).items():
            source = known.get(f"{chr(letter)}{number}")
            if source is None:
                raise BadInput(f"{statement.strip()[:40]!r} uses {chr(letter)}{number} before it is assigned")
            work += len(source)
            if work > MAX_COEFFICIENTS:
                raise BadInput(f"the straight-line program expands to more than {MAX_COEFFICIENTS} coefficients")
            for k, x in source.items():
                value[k] = value.get(k, Fraction(0)) + c * term.scalar * x
                if value[k].numerator.bit_length() > MAX_BITS or value[k].denominator.bit_length() > MAX_BITS:
                    raise BadInput(f"the straight-line program computes a coefficient of more than {MAX_BITS} bits")
        known[name] = value
        if name[0] == "o":
            outputs[int(name[1:])] = value
    missing = next((k for k in range(max(outputs, default=0) + 1) if k not in outputs), None)
    if missing is not None:
        raise BadInput(f"the straight-line program does not assign o{missing}")
    return [outputs[k] for k in range(len(outputs))]


def _statements(text: str) -> Iterator[str]:
    for line in text.splitlines():
        yield from (s for s in line.split("#")[0].split(";") if s.strip())
