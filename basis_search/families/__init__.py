"""The families of replacements, by name; a new one is a folder here, its import and its line in FAMILIES."""

from basis_search.errors import BadInput, near_miss
from basis_search.families import dense, int8, kronecker, lowrank, pq, stl
from basis_search.families.protocol import Family

FAMILIES: dict[str, Family] = {
    "dense": dense,
    "int8": int8,
    "lowrank": lowrank,
    "stl": stl,
    "kronecker": kronecker,
    "pq": pq,
}


def family(name: str) -> Family:
    """The family of that name.

    Raises:
        BadInput: there is none; the sentence names the nearest.
    """
    if name not in FAMILIES:
        raise BadInput(f"there is no family {name!r}{near_miss(name, list(FAMILIES))}")
    return FAMILIES[name]
