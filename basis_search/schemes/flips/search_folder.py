"""The folder of a search: the best schemes as catalogue files, and the state from which the search resumes."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

from basis_search.errors import BadInput
from basis_search.schemes.algebra.scheme import BilinearScheme
from basis_search.schemes.flips.pool import Pool
from basis_search.schemes.flips.symmetric import OrbitPool
from basis_search.schemes.library.loader import Catalogue

STATE_INTERVAL = 30.0  # seconds between two writes of the state
ORBITS_PREFIX = "orbits-of-"  # of the file of orbits, before the name of the state's file


class SearchFolder:
    """Writes what a search finds. A write that fails warns, and the search continues.

    Args:
        path: the folder, created on the first write.
        state: name of the state's file in it.
    """

    def __init__(self, path: Path, state: str) -> None:
        self.path = path
        self.state_path = path / state
        self.orbits_path = path / (ORBITS_PREFIX + state)
        self._last_write = time.monotonic()

    def add(self, scheme: BilinearScheme, provenance: dict[str, Any]) -> None:
        """Writes a scheme into the catalogue of the folder."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            Catalogue(self.path).add(scheme, provenance)
        except (OSError, BadInput) as error:  # a full disk must not lose the scheme
            warnings.warn(f"{scheme!r} could not be written ({error}); it is kept in memory", stacklevel=2)

    def write_state(self, pool: Pool, orbits: OrbitPool, facts: dict[str, Any], always: bool) -> None:
        """Writes the state; unless `always`, only if the last write is `STATE_INTERVAL` ago."""
        if not always and time.monotonic() - self._last_write < STATE_INTERVAL:
            return
        self._last_write = time.monotonic()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            pool.save(self.state_path, facts)
            if orbits.held:
                orbits.save(self.orbits_path)
        except OSError as error:
            warnings.warn(f"{self.state_path} could not be written ({error}); the search continues", stacklevel=2)

    def read_state(self, ring: str, expected: dict[str, Any]) -> tuple[Pool, dict[str, Any], OrbitPool | None]:
        """Pool, facts and orbits as `write_state` wrote them.

        Raises:
            BadInput: there is no state, it is damaged, or its facts differ from those expected.
        """
        pool, facts = Pool.load(self.state_path, ring)
        for name, value in expected.items():
            if facts.get(name) != value:
                raise BadInput(
                    f"{self.state_path} belongs to {name} {facts.get(name)}, not {value}; name another directory"
                )
        orbits = OrbitPool.load(expected["format"][0], self.orbits_path) if self.orbits_path.exists() else None
        return pool, facts, orbits
