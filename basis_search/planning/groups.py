"""Groups: layers that share a family and spec in every plan, by names or by patterns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from basis_search.errors import BadInput, near_miss

Groups = Sequence[str | Sequence[str]]


def grouped(names: Iterable[str], groups: Groups) -> list[list[str]]:
    """The layers of each group, for groups of at least two.

    Args:
        names: all layers.
        groups: lists of names, or patterns "re:<regular expression>"; the matches of a pattern form one group for each
            value of the expression's own groups.

    Raises:
        BadInput: a pattern that is no regular expression or matches nothing, an unknown name, or a name in two groups.
    """
    known, found = list(names), []
    for group in groups:
        if not isinstance(group, str):
            for name in group:
                if name not in known:
                    raise BadInput(f"there is no layer {name!r} to group{near_miss(name, known)}")
            found.append(list(group))
            continue
        try:
            matches = {name: re.fullmatch(group.removeprefix("re:"), name) for name in known}
        except re.error as problem:
            raise BadInput(f"{group!r} is no regular expression: {problem}") from problem
        together: dict[tuple[str | Any, ...], list[str]] = {}
        for name, match in matches.items():
            if match is not None:
                together.setdefault(match.groups(), []).append(name)
        if not together:
            raise BadInput(f"no layer matches the group {group!r}; there are: {', '.join(known)}")
        found += together.values()
    found = [members for members in found if len(members) > 1]
    for name, times in Counter(name for members in found for name in members).items():
        if times > 1:
            raise BadInput(f"the layer {name!r} is in two groups; name it in one")
    return found
