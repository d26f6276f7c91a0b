"""The families of replacements, by name; a new one is a folder here and a line in NAMES."""

from __future__ import annotations

import importlib
from typing import cast

from basis_search.errors import BadInput, near_miss
from basis_search.families.protocol import Family

NAMES = (
    "dense",
    "int8",
    "fp8",
    "sparse24",
    "weight_only",
    "lowrank",
    "stl",
    "kronecker",
    "pq",
)
"""In the order in which they are searched, listed and drawn; tests have mypy check each against the protocol."""
FAMILIES: dict[str, Family] = {
    name: cast("Family", importlib.import_module(f"basis_search.families.{name}")) for name in NAMES
}


def family(name: str) -> Family:
    """The family of that name.

    Raises:
        BadInput: there is none; the sentence names the nearest.
    """
    if name not in FAMILIES:
        raise BadInput(f"there is no family {name!r}{near_miss(name, list(FAMILIES))}")
    return FAMILIES[name]
