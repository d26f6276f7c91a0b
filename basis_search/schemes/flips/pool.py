"""The pool of schemes from which a search starts its walks, by rank, stored as one .npz without objects."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from basis_search.errors import BadInput
from basis_search.schemes.algebra.scheme import BilinearScheme

MAX_PER_RANK = 200
RANKS_ABOVE_BEST = 2


class Pool:
    """Schemes of one format and ring, at most 200 of each of the three lowest ranks found."""

    def __init__(self) -> None:
        self.schemes: dict[int, list[BilinearScheme]] = {}

    @property
    def best(self) -> int | None:
        """The lowest rank in the pool."""
        return min(self.schemes, default=None)

    def add(self, scheme: BilinearScheme, random: np.random.Generator) -> None:
        """Adds the scheme if its rank is among the lowest; if that rank is full it replaces a random one."""
        if self.best is not None and scheme.rank > self.best + RANKS_ABOVE_BEST:
            return
        held = self.schemes.setdefault(scheme.rank, [])
        if len(held) < MAX_PER_RANK:
            held.append(scheme)
        else:
            held[int(random.integers(len(held)))] = scheme
        best = min(self.schemes)
        for rank in [rank for rank in self.schemes if rank > best + RANKS_ABOVE_BEST]:
            del self.schemes[rank]

    def draw(self, random: np.random.Generator) -> BilinearScheme:
        """A random scheme; each rank is half as likely as the one below it."""
        ranks = sorted(self.schemes)
        weights = np.array([2.0 ** -(rank - ranks[0]) for rank in ranks])
        held = self.schemes[ranks[int(random.choice(len(ranks), p=weights / weights.sum()))]]
        return held[int(random.integers(len(held)))]

    def save(self, path: Path, facts: dict[str, Any]) -> None:
        """Writes schemes and facts atomically."""
        arrays: dict[str, Any] = {"facts": np.array(json.dumps(facts))}
        for rank, held in self.schemes.items():
            for letter in "UVW":
                stacked = np.stack([getattr(s, letter) for s in held]).astype(np.int8)
                arrays[f"{letter}{rank}"] = stacked
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path, ring: str) -> tuple[Pool, dict[str, Any]]:
        """The pool and the facts that `save` wrote; every scheme is verified again.

        Raises:
            BadInput: no such file, another kind of file, or a scheme that does not verify.
        """
        pool = cls()
        try:
            with np.load(path, allow_pickle=False) as file:
                facts = json.loads(str(file["facts"]))
                n, m, p = (int(side) for side in facts["format"])
                for name in file.files:
                    if not name.startswith("U"):
                        continue
                    stacks = [file[letter + name[1:]] for letter in "UVW"]
                    for U, V, W in zip(*stacks, strict=True):
                        scheme = BilinearScheme(n, m, p, U, V, W, ring)
                        if not scheme.verify():
                            raise BadInput(f"{path} contains a scheme that is not exact: {scheme.first_violation()}")
                        pool.schemes.setdefault(scheme.rank, []).append(scheme)
        except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(f"{path} is not a stored search ({error}); start a new one without it") from error
        return pool, facts
