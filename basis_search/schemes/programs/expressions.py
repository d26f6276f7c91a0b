"""A parser for schemes and programs as expressions: (a11 + 2*a12)*(b21)*(c11 - c21)/3, o3:=i1-i3, nested braces."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

from basis_search.errors import BadInput

MAX_DEPTH = 32
MAX_TOKENS = 1 << 16  # of a line
MAX_DIGITS = 1000  # of a number

Entry = tuple[int, int]
Form = dict[Entry, Fraction]

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?)"
    r"|(?P<name>[A-Za-z](?:_?\d+_\d+|\[\s*\d+\s*,\s*\d+\s*\]|_?\d+))"
    r"|(?P<mark>[-+*/()]))"
)


@dataclass
class FormProduct:
    """A product of linear forms, one per letter, times a scalar."""

    scalar: Fraction = Fraction(1)
    forms: dict[str, Form] = field(default_factory=dict)

    def times(self, other: FormProduct) -> FormProduct:
        shared = self.forms.keys() & other.forms.keys()
        if shared:
            raise _Malformed(f"a product of two forms in {min(shared)}")
        return FormProduct(self.scalar * other.scalar, {**self.forms, **other.forms})

    def plus(self, other: FormProduct) -> FormProduct:
        if len(self.forms) != 1 or self.forms.keys() != other.forms.keys():
            raise _Malformed("a sum of expressions that are not linear forms in one letter")
        letter = next(iter(self.forms))
        total = {entry: c * self.scalar for entry, c in self.forms[letter].items()}
        for entry, c in other.forms[letter].items():
            total[entry] = total.get(entry, Fraction(0)) + c * other.scalar
        return FormProduct(Fraction(1), {letter: total})


class _Malformed(ValueError):
    pass


def tokens(text: str) -> list[tuple[str, str]]:
    """The tokens of a line as ("number" | "name" | "mark", text).

    Raises:
        BadInput: a character that no expression contains, or a line beyond the limits.
    """
    found, position = [], 0
    text = text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise BadInput(f"{text[position : position + 20].strip()!r} is not allowed in an expression of a scheme")
        kind = match.lastgroup or "mark"
        found.append((kind, match.group(kind)))
        if len(found) > MAX_TOKENS or len(found[-1][1]) > MAX_DIGITS:
            raise BadInput(f"a line has more than {MAX_TOKENS} tokens or a number of more than {MAX_DIGITS} digits")
        position = match.end()
    return found


def parse_term(line: str, entry: Callable[[str], tuple[str, Entry]]) -> FormProduct:
    """One line as a product of linear forms; `entry` splits a name such as a12 into its letter and indices.

    The `*` between factors is optional, and numbers come before names. If brackets do not match, each run of names
    with the same letter is read as a linear form; Brent's equations decide whether that is right.

    Raises:
        BadInput: the line is not such a product.
    """
    found = tokens(line)
    try:
        parser = _FormProductParser(found, entry)
        term = parser.sum(0)
        if parser.position != len(found):
            raise _Malformed("brackets that do not match")
        return term
    except _Malformed as problem:
        try:
            if not _matched(found):
                return _runs(found, entry)
            raise
        except _Malformed:
            raise BadInput(f"{line.strip()[:60]!r} is not a product of linear forms: {problem}") from None


@dataclass
class _FormProductParser:
    found: list[tuple[str, str]]
    entry: Callable[[str], tuple[str, Entry]]
    position: int = 0

    def peek(self) -> tuple[str, str]:
        return self.found[self.position] if self.position < len(self.found) else ("end", "")

    def take(self) -> tuple[str, str]:
        token = self.peek()
        self.position += 1
        return token

    def sum(self, depth: int) -> FormProduct:
        if depth > MAX_DEPTH:
            raise BadInput(f"brackets are nested more than {MAX_DEPTH} deep, the limit")
        sign = -1 if self.peek()[1] == "-" else 1
        if self.peek()[1] in ("-", "+"):
            self.take()
        total = self.product(depth).times(FormProduct(Fraction(sign)))
        while self.peek()[1] in ("-", "+"):
            sign = -1 if self.take()[1] == "-" else 1
            total = total.plus(self.product(depth).times(FormProduct(Fraction(sign))))
        return total

    def product(self, depth: int) -> FormProduct:
        total = self.factor(depth)
        while True:
            kind, text = self.peek()
            if text == "*":
                self.take()
                total = total.times(self.factor(depth))
            elif text == "/":
                self.take()
                divisor = self.factor(depth)
                if divisor.forms or not divisor.scalar:
                    raise _Malformed("a division by something that is not a number other than 0")
                total = total.times(FormProduct(1 / divisor.scalar))
            elif kind in ("number", "name") or text == "(":
                total = total.times(self.factor(depth))
            else:
                return total

    def factor(self, depth: int) -> FormProduct:
        kind, text = self.take()
        if kind == "number":
            return FormProduct(Fraction(text))
        if kind == "name":
            letter, place = self.entry(text)
            return FormProduct(Fraction(1), {letter: {place: Fraction(1)}})
        if text in ("-", "+"):
            return self.factor(depth).times(FormProduct(Fraction(-1 if text == "-" else 1)))
        if text == "(":
            inside = self.sum(depth + 1)
            if self.take()[1] != ")":
                raise _Malformed("brackets that do not match")
            return inside
        raise _Malformed(f"{text!r} where a factor is expected")


def _matched(found: list[tuple[str, str]]) -> bool:
    depth = 0
    for _, text in found:
        depth += (text == "(") - (text == ")")
        if depth < 0:
            return False
    return depth == 0


def _runs(found: list[tuple[str, str]], entry: Callable[[str], tuple[str, Entry]]) -> FormProduct:
    forms: dict[str, Form] = {}
    last, sign, factor = "", 1, Fraction(1)
    for kind, text in found:
        if text == "/":
            raise _Malformed("a division among unmatched brackets")
        if kind == "mark":
            sign = -1 if text == "-" else 1 if text in ("+", "(") else sign
        elif kind == "number":
            factor *= Fraction(text)
        else:
            letter, place = entry(text)
            if letter != last and letter in forms:
                raise _Malformed("letters that are mixed")
            form = forms.setdefault(letter, {})
            form[place] = form.get(place, Fraction(0)) + sign * factor
            last, sign, factor = letter, 1, Fraction(1)
    return FormProduct(Fraction(1), forms)


def matrix_entry(name: str) -> tuple[str, Entry]:
    """a12, a1_2, a_1_2 or a[1,2] as ("a", (0, 1)).

    Raises:
        BadInput: ambiguous digits, or an index outside 1 to 99.
    """
    letter, numbers = name[0].lower(), re.findall(r"\d+", name)
    if len(numbers) == 1:
        digits = numbers[0]
        if len(digits) % 2 or len(digits) > 4:
            raise BadInput(f"the indices of {name!r} are ambiguous; write them as in {letter}[1,10]")
        numbers = [digits[: len(digits) // 2], digits[len(digits) // 2 :]]
    row, column = (int(x) for x in numbers)
    if row < 1 or column < 1 or max(row, column) > 99:
        raise BadInput(f"{name!r} has an index outside 1 to 99")
    return letter, (row - 1, column - 1)


def read_products(text: str) -> list[tuple[Form, Form, Form]]:
    """The terms of an .exp file, one per line, as linear forms in a, b and c with keys (row, column).

    Raises:
        BadInput: a line that is not a product of one form each in a, b and c.
    """
    terms = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.split("#")[0].strip().rstrip(",;+").strip()
        if not line:
            continue
        try:
            term = parse_term(line.lstrip("+"), matrix_entry)
        except BadInput as problem:
            raise BadInput(f"line {number}: {problem}") from None
        if term.forms.keys() != {"a", "b", "c"}:
            letters = ", ".join(sorted(term.forms)) or "nothing"
            raise BadInput(f"line {number} has forms in {letters}, but one form each in a, b and c is needed")
        a, b, c = (term.forms[letter] for letter in "abc")
        terms.append((a, b, {place: x * term.scalar for place, x in c.items()}))
    if not terms:
        raise BadInput("the file contains no terms; lines such as (a11 + a22)*(b11)*(c12) are needed")
    return terms


def read_braces(text: str) -> list[list[list[list[str]]]]:
    """The nested lists {{{1, 0}, {0, 1}}, ...} of an .m file: terms of three matrices, as rows of numbers in text form.

    Raises:
        BadInput: unmatched braces, numbers outside the fourth level, or a term that is not three matrices.
    """
    stack: list[list[object]] = [[]]
    for match in re.finditer(r"\(\*.*?\*\)|[{}]|[^{},\s;]+|;", text, re.S):
        token = match.group()
        if token == "{":
            if len(stack) > 4:
                raise BadInput("braces are nested more than 4 deep: terms of three matrices of rows are needed")
            stack.append([])
        elif token == "}":
            if len(stack) == 1:
                raise BadInput("a closing brace has no opening one")
            inside = stack.pop()
            stack[-1].append(inside)
        elif token != ";" and not token.startswith("(*"):
            if len(stack) != 5:
                raise BadInput(f"{token[:20]!r} is not in the fourth level of braces, where numbers belong")
            stack[-1].append(token)
    if len(stack) != 1 or len(stack[0]) != 1:
        raise BadInput("the braces do not match; the file is truncated or contains more than one list")
    terms = stack[0][0]
    for term in terms:  # type: ignore[attr-defined]
        if not isinstance(term, list) or len(term) != 3 or not all(isinstance(x, list) and x for x in term):
            raise BadInput("a term is not a list of three matrices")
    return terms  # type: ignore[return-value]
