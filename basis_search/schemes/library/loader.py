"""The catalogue of schemes found by this project: one verified JSON file per scheme, with its provenance."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from basis_search.errors import BadInput
from basis_search.schemes.algebra.scheme import BilinearScheme
from basis_search.schemes.files import load_save

FOLDER = Path(__file__).parent / "data"
_NAME = re.compile(r"(\d+)x(\d+)x(\d+)_r(\d+)_([A-Za-z0-9]+)(?:_\w+)?")
_RING_NAMES = {"Z[1/2]": "Zhalf", "Z[i]": "Zi", "Z[i,1/2]": "Zihalf", "Q[i]": "Qi"}


def name_of(scheme: BilinearScheme) -> str:
    """The scheme's name in a catalogue, such as 4x4x4_r47_Z2."""
    return f"{scheme.format}_r{scheme.rank}_{_RING_NAMES.get(scheme.ring, scheme.ring)}"


class Catalogue(Mapping[str, BilinearScheme]):
    """A mapping of names to schemes; a file is read and verified on first access to its scheme."""

    def __init__(self, folder: str | os.PathLike[str] = FOLDER) -> None:
        self.folder = Path(folder)
        self._loaded: dict[str, BilinearScheme] = {}

    def _names(self) -> list[str]:
        return sorted(path.stem for path in self.folder.glob("*.json"))

    def __getitem__(self, name: str) -> BilinearScheme:
        if name not in self._loaded:
            if name not in self._names():
                raise KeyError(name)
            scheme = load_save.load(self.folder / f"{name}.json")
            if not name.startswith(name_of(scheme)):
                raise BadInput(f"{name}.json contains {name_of(scheme)}, not what its name says; the file was altered")
            self._loaded[name] = scheme
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def provenance(self, name: str) -> dict[str, Any]:
        """How `name` was found: method, seed, seconds and other facts in its file.

        Raises:
            KeyError: no such scheme.
        """
        if name not in self._names():
            raise KeyError(name)
        return load_save.provenance(self.folder / f"{name}.json")

    def best(self, n: int, m: int, p: int, ring: str | None = None) -> BilinearScheme | None:
        """The scheme of least rank for a permutation of the format, permuted to it, over `ring` or any; or None.

        Schemes over smaller rings are converted: one over ZT to Z or Q, or reduced modulo p to Zp.
        """
        from basis_search.schemes.algebra.transforms import is_contained, to_format

        found: list[tuple[int, str]] = []
        for name in self._names():
            match = _NAME.fullmatch(name)
            if match is None or sorted(int(x) for x in match.group(1, 2, 3)) != sorted((n, m, p)):
                continue
            scheme_ring = {short: full for full, short in _RING_NAMES.items()}.get(match.group(5), match.group(5))
            if ring is None or scheme_ring == ring or is_contained(scheme_ring, ring):
                found.append((int(match.group(4)), name))
        if not found:
            return None
        scheme = to_format(self[min(found)[1]], n, m, p)
        if ring is None or scheme.ring == ring:
            return scheme
        return scheme.reduce_mod(int(ring[1:])) if re.fullmatch(r"Z\d+", ring) else scheme.to_ring(ring)

    def add(self, scheme: BilinearScheme, provenance: Mapping[str, Any], suffix: str = "") -> str:
        """Verifies a scheme, writes it into the folder and returns its name.

        Args:
            scheme: exact.
            provenance: facts stored in the file.
            suffix: distinguishes schemes of equal format, rank and ring.

        Raises:
            BadInput: the scheme is not exact, or the folder cannot be written.
        """
        if not scheme.ring_of.exact:
            raise BadInput("the catalogue stores exact schemes only, and this one is over R")
        name = name_of(scheme) + (f"_{suffix}" if suffix else "")
        load_save.save(scheme, self.folder / f"{name}.json", provenance)
        self._loaded.pop(name, None)
        return name


def catalogue(folder: str | os.PathLike[str] = FOLDER) -> Catalogue:
    """The schemes that ship with the project, or those of another folder of scheme files."""
    return Catalogue(folder)
