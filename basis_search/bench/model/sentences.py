"""English sentences without a download: of the docstrings of Python's standard library and of installed packages.

The same for the same versions of Python and of the packages; other versions give other sentences of the same kind.
"""

from __future__ import annotations

import ast
import importlib.util
import random
import re
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from basis_search.errors import BadInput

PACKAGES = ("sklearn", "transformers")
FILES = 1500
"""At most this many files of each package, in alphabetical order."""
_SENTENCE = re.compile(r"[A-Z][A-Za-z0-9 ,.;:'()\-]*[.!?]")


def docstrings(packages: Sequence[str] = PACKAGES) -> Iterator[str]:
    """Of the standard library and of those packages, in alphabetical order of their files.

    Raises:
        BadInput: a package is not installed.
    """
    roots = [Path(sysconfig.get_path("stdlib"))]
    for package in packages:
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            raise BadInput(f"the package {package!r}, whose docstrings are the text, is not installed; pip install it")
        roots.append(Path(found.origin).parent)
    for root in roots:
        files = [p for p in sorted(root.rglob("*.py")) if "site-packages" not in p.relative_to(root).parts]
        for path in [p for p in files if "test" not in str(p.relative_to(root))][:FILES]:
            try:
                tree = ast.parse(path.read_text(encoding="utf-8"))
            except (SyntaxError, UnicodeDecodeError):  # files of another Python, templates
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and (text := ast.get_docstring(node)):
                    yield text


def sentences(count: int, seed: int = 0) -> list[str]:
    """Different sentences of 6 to 30 words from the docstrings, in an order drawn by `seed`.

    Raises:
        BadInput: there are fewer, or a package is not installed.
    """
    found = sentences_of(docstrings(), seed)
    if len(found) < count:
        raise BadInput(f"the installed docstrings have {len(found)} sentences, but {count} are needed")
    return found[:count]


def sentences_of(texts: Iterable[str], seed: int) -> list[str]:
    """All different sentences of 6 to 30 words without markup, in an order drawn by `seed`."""
    found = set()
    for text in texts:
        for sentence in re.split(r"(?<=[.!?])\s+|\n\s*\n", text):
            words = sentence.split()
            if 6 <= len(words) <= 30 and _SENTENCE.fullmatch(plain := " ".join(words)):
                found.add(plain)
    ordered = sorted(found)
    random.Random(seed).shuffle(ordered)
    return ordered
