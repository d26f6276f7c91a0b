"""BadInput, the error for unusable input, and the sentence that corrects a misspelt name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class BadInput(ValueError):
    """The caller gave something that cannot be used; the command line prints it and exits with status 2."""


def near_miss(value: str, known: Sequence[str]) -> str:
    """'; did you mean "x"? Known are: ...' for a misspelt name."""
    close = difflib.get_close_matches(value, known, n=1)
    hint = f"; did you mean {close[0]!r}? Known are" if close else "; known are"
    return f"{hint}: {', '.join(known)}"
