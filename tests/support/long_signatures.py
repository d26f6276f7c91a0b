#!/usr/bin/env python3
"""Lists functions that take more than 8 parameters: python tests/support/long_signatures.py"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
MOST = 8


class Signature(NamedTuple):
    """A function, the number of its parameters without `self`, and whether Triton compiles it."""

    name: str
    parameters: int
    path: str
    is_triton: bool


def signatures(root: Path = ROOT) -> Iterator[Signature]:
    """Those with more than MOST parameters, longest first within a file."""
    for path in sorted([*(root / "basis_search").rglob("*.py"), *(root / "kernels").rglob("*.py")]):
        for owner in ast.walk(ast.parse(path.read_text(), str(path))):
            for node in ast.iter_child_nodes(owner):
                if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    continue
                given = node.args
                every = (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg)
                count = sum(a is not None and a.arg not in ("self", "cls") for a in every)
                if count > MOST:
                    name = f"{owner.name}.{node.name}" if isinstance(owner, ast.ClassDef) else node.name
                    is_triton = any("triton.jit" in ast.unparse(decorator) for decorator in node.decorator_list)
                    yield Signature(name, count, path.relative_to(root).as_posix(), is_triton)


if __name__ == "__main__":
    found = sorted(signatures(), key=lambda s: (s.is_triton, -s.parameters))
    for signature in found:
        kind = "Triton kernel" if signature.is_triton else "public"
        print(f"{signature.parameters:3} {signature.name:24} {signature.path} ({kind})")
    print(f"{len(found)} signatures with more than {MOST} parameters")
