"""Kronecker-sparse patterns, I_a (x) 1_{b x c} (x) I_d, and chains of them, K = K_1 K_2 ... K_L.

Definitions: Gonon, Zheng, Carrivain, Le, arXiv 2405.15013; chainability and redundancy: arXiv 2411.04506.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import torch
from torch import Tensor

from basis_search.errors import BadInput


@dataclass(frozen=True, order=True)
class KroneckerPattern:
    """The support I_a (x) 1_{b x c} (x) I_d of an [abd, acd] matrix; its values are stored as w [a, b, c, d].

    K[i.b.d + j.d + l, i.c.d + k.d + l] = w[i, j, k, l] for i < a, j < b, k < c, l < d.

    Raises:
        BadInput: a field is not an integer >= 1.
    """

    a: int
    b: int
    c: int
    d: int

    def __post_init__(self) -> None:
        for name, value in zip("abcd", (self.a, self.b, self.c, self.d), strict=True):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BadInput(f"pattern {self}: {name} is {value!r}, but an integer >= 1 is needed")

    def __str__(self) -> str:
        return f"({self.a},{self.b},{self.c},{self.d})"

    @property
    def storage(self) -> tuple[int, int, int, int]:
        """Shape of the stored values, (a, b, c, d)."""
        return self.a, self.b, self.c, self.d

    @property
    def rows(self) -> int:
        return self.a * self.b * self.d

    @property
    def columns(self) -> int:
        return self.a * self.c * self.d

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.columns

    @property
    def nnz(self) -> int:
        return self.a * self.b * self.c * self.d

    @property
    def density(self) -> float:
        """nnz / (rows . columns) = 1 / (ad)."""
        return 1 / (self.a * self.d)

    @property
    def transpose(self) -> KroneckerPattern:
        return KroneckerPattern(self.a, self.c, self.b, self.d)

    def support(self) -> Tensor:
        """The pattern as a boolean matrix, [abd, acd]."""
        ones = torch.ones(self.b, self.c)
        return torch.kron(torch.eye(self.a), torch.kron(ones, torch.eye(self.d))).bool()

    def mismatch(self, right: KroneckerPattern) -> str | None:
        """Why self . right is not chainable; None if it is."""
        if self.columns != right.rows:
            return f"{self} has {self.columns} columns but {right} has {right.rows} rows"
        if right.a % self.a:
            return f"a = {self.a} of {self} does not divide a = {right.a} of {right}"
        if self.d % right.d:
            return f"d = {right.d} of {right} does not divide d = {self.d} of {self}"
        if (self.a * self.c) % right.a:
            return f"a.c = {self.a * self.c} of {self} is no multiple of a = {right.a} of {right}"
        return None

    def rank_with(self, right: KroneckerPattern) -> int:
        """Rank r = a_1 c_1 / a_2 of the blocks of a chainable product self . right."""
        return self.a * self.c // right.a

    def product(self, right: KroneckerPattern) -> KroneckerPattern:
        """The pattern of self . right, (a_1, b_1 d_1 / d_2, a_2 c_2 / a_1, d_2).

        Raises:
            BadInput: the two are not chainable.
        """
        reason = self.mismatch(right)
        if reason is not None:
            raise BadInput(f"{self}*{right} is not chainable: {reason}")
        return KroneckerPattern(self.a, self.b * self.d // right.d, right.a * right.c // self.a, right.d)


_PATTERN = re.compile(r"\(\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\)")


@dataclass(frozen=True)
class KroneckerChain:
    """A product K_1 K_2 ... K_L of Kronecker-sparse matrices, leftmost first; [M, N] = [rows of K_1, columns of K_L].

    Raises:
        BadInput: there is no pattern, or two neighbours have different sides.
    """

    patterns: tuple[KroneckerPattern, ...]

    def __post_init__(self) -> None:
        if not self.patterns:
            raise BadInput("a chain needs at least one pattern (a,b,c,d)")
        for left, right in zip(self.patterns, self.patterns[1:], strict=False):
            if left.columns != right.rows:
                raise BadInput(
                    f"the patterns {left} and {right} do not compose: {left} has {left.columns} columns (a.c.d) but "
                    f"{right} has {right.rows} rows (a.b.d); make them equal"
                )

    @classmethod
    def of(cls, *patterns: Sequence[int]) -> KroneckerChain:
        """KroneckerChain.of((1, 16, 16, 16), (16, 16, 16, 1))."""
        return cls(tuple(KroneckerPattern(*p) for p in patterns))

    @classmethod
    def parse(cls, text: str) -> KroneckerChain:
        """The inverse of `str`: a chain from "(1,16,16,16)*(16,16,16,1)".

        Raises:
            BadInput: the text is not a chain, or the patterns do not compose.
        """
        parts = text.split("*") if isinstance(text, str) else []
        matches = [_PATTERN.fullmatch(part.strip()) for part in parts]
        if not matches or any(match is None for match in matches):
            raise BadInput(
                f"{text!r} is not a chain; write patterns (a,b,c,d) joined by *, e.g. (1,16,16,16)*(16,16,16,1)"
            )
        return cls.of(*([int(v) for v in match.groups()] for match in matches if match is not None))

    @classmethod
    def dyadic(cls, n: int) -> KroneckerChain:
        """The square dyadic (butterfly) chain (2^{l-1}, 2, 2, 2^{L-l}), l = 1..L, of n = 2^L.

        Raises:
            BadInput: n is not a power of two >= 2.
        """
        if n < 2 or n & (n - 1):
            raise BadInput(f"a dyadic chain of size {n} does not exist; the size must be a power of two, 2 or more")
        levels = n.bit_length() - 1
        return cls.of(*((1 << level, 2, 2, n >> (level + 1)) for level in range(levels)))

    @classmethod
    def monarch(cls, rows: int, columns: int, p: int, q: int, rank: int = 1) -> KroneckerChain:
        """((1, p, qr, M/p), (q, rM/p, N/q, 1)): M/p . q blocks of p x N/q, each of rank r.

        Raises:
            BadInput: p does not divide the rows or q the columns.
        """
        if rows % p or columns % q:
            raise BadInput(f"a Monarch chain of {rows} x {columns} needs p | {rows}, q | {columns}, not p={p}, q={q}")
        return cls.of((1, p, q * rank, rows // p), (q, rank * rows // p, columns // q, 1))

    def __str__(self) -> str:
        return "*".join(str(pattern) for pattern in self.patterns)

    def __len__(self) -> int:
        return len(self.patterns)

    def __iter__(self) -> Iterator[KroneckerPattern]:
        return iter(self.patterns)

    def __getitem__(self, index: slice) -> KroneckerChain:
        return KroneckerChain(self.patterns[index])

    @property
    def shape(self) -> tuple[int, int]:
        return self.patterns[0].rows, self.patterns[-1].columns

    @property
    def nnz(self) -> int:
        """Stored values = multiplications per row of input."""
        return sum(pattern.nnz for pattern in self.patterns)

    @property
    def density(self) -> float:
        """nnz relative to a dense matrix of the same shape."""
        rows, columns = self.shape
        return self.nnz / (rows * columns)

    @property
    def transpose(self) -> KroneckerChain:
        return KroneckerChain(tuple(pattern.transpose for pattern in reversed(self.patterns)))

    @cached_property
    def mismatch(self) -> str | None:
        """Why the chain is not chainable; None if it is."""
        for left, right in zip(self.patterns, self.patterns[1:], strict=False):
            reason = left.mismatch(right)
            if reason is not None:
                return reason
        return None

    @property
    def chainable(self) -> bool:
        return self.mismatch is None

    @property
    def product(self) -> KroneckerPattern:
        """The pattern of the whole product; BadInput if not chainable."""
        return reduce(lambda left, right: left.product(right), self.patterns)

    @property
    def ranks(self) -> tuple[int, ...]:
        """r_l between factors l and l + 1; BadInput if not chainable."""
        self.require_chainable()
        return tuple(p.rank_with(q) for p, q in zip(self.patterns, self.patterns[1:], strict=False))

    def require_chainable(self) -> None:
        """Raise BadInput with the two patterns and the mismatch unless the chain is chainable."""
        if self.mismatch is not None:
            raise BadInput(f"the chain {self} is not chainable: {self.mismatch}")

    def redundant(self) -> int | None:
        """Index l of the first pair (l, l + 1) with r >= min(b_l, c_{l+1}), which merges exactly at no cost."""
        for index, rank in enumerate(self.ranks):
            if rank >= min(self.patterns[index].b, self.patterns[index + 1].c):
                return index
        return None

    def fuse(self, groups: Sequence[int]) -> KroneckerChain:
        """The chain with groups of contiguous factors multiplied out: (2, 1) turns K_1 K_2 K_3 into (K_1 K_2) K_3.

        Raises:
            BadInput: the groups do not add up to the number of factors, or are not chainable.
        """
        if sum(groups) != len(self) or any(g < 1 for g in groups):
            raise BadInput(f"groups {tuple(groups)} do not add up to the {len(self)} factors of {self}")
        starts = [sum(groups[:i]) for i in range(len(groups))]
        return KroneckerChain(tuple(self[s : s + g].product for s, g in zip(starts, groups, strict=True)))

    def without_redundancy(self) -> tuple[KroneckerChain, tuple[int, ...]]:
        """The chain with redundant pairs merged, and the groups to pass to `fuse` for it."""
        groups = [1] * len(self)
        chain = self
        while (index := chain.redundant()) is not None:
            groups[index : index + 2] = [groups[index] + groups[index + 1]]
            chain = self.fuse(groups)
        return chain, tuple(groups)
