"""Schemes of square matrices with Z3 symmetry, a.b.c -> b.c.a: cubes a.a.a and orbits of three terms.

With C transposed the tensor of n x n matrices is invariant under the cyclic shift, so over GF(2) it is a sum of cubes
and orbits; a walk flips whole orbits and leaves the cubes unchanged (Moosbauer and Poole, Flip graphs with symmetry and
new matrix multiplication schemes, 2025). The number of cubes c determines the possible ranks, c modulo 3.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from basis_search.errors import BadInput
from basis_search.schemes.algebra.scheme import BilinearScheme
from basis_search.schemes.flips.walk import (
    WalkResult,
    WalkSettings,
    compiled,
    kernels,
)

Bits = NDArray[np.int8]

FRESH_SHARE = 0.75  # of the walks, which begin from new cubes
AIMED_SHARE = 0.75  # of the walks, whose number of cubes fits the target rank
LOG10_ORBIT_FLIPS = (8.2, 8.5)  # of a walk; over orbits long walks are better
SYMMETRIES = ("auto", "Z3", "none")
AUTO_SHARE = 0.9  # of the walks for square formats from 5 x 5 on
MAX_ORBITS_PER_COUNT = 16  # schemes in the pool for each number of cubes


@dataclass(frozen=True)
class Orbits:
    """A scheme over GF(2) as cubes [c, n n] and orbits U, V, W [q, n n], of rank c + 3 q; C is transposed."""

    n: int
    cubes: Bits
    U: Bits
    V: Bits
    W: Bits

    @property
    def rank(self) -> int:
        """The rank of the scheme that they represent."""
        return len(self.cubes) + 3 * len(self.U)

    def scheme(self) -> BilinearScheme:
        """The scheme over Z2 with every orbit expanded."""
        n, c = self.n, self.cubes
        A, B, C = (np.concatenate([c, *t]) for t in ((self.U, self.V, self.W), (self.V, self.W, self.U),
                                                      (self.W, self.U, self.V)))  # fmt: skip
        C = np.ascontiguousarray(C.reshape(-1, n, n).transpose(0, 2, 1)).reshape(-1, n * n)
        return BilinearScheme(n, n, n, A, B, C, "Z2")

    def absorbed(self) -> Orbits:
        """The same scheme with orbits of three equal terms as one cube over GF(2) and equal cubes cancelled."""
        equal = (self.U == self.V).all(1) & (self.V == self.W).all(1)
        cubes, count = np.unique(np.concatenate([self.cubes, self.U[equal]]), axis=0, return_counts=True)
        return Orbits(self.n, cubes[count % 2 == 1], self.U[~equal], self.V[~equal], self.W[~equal])


def is_symmetric(scheme: BilinearScheme) -> bool:
    """Whether the cyclic shift a.b.c -> b.c.a, with C transposed, only permutes the terms of a scheme over Z2."""
    if scheme.ring != "Z2" or not scheme.n == scheme.m == scheme.p:
        return False
    n = scheme.n
    W = scheme.W.reshape(-1, n, n).transpose(0, 2, 1).reshape(-1, n * n)
    columns = [np.asarray(x, dtype=np.int8) for x in (scheme.U, scheme.V, W)]
    shifts = [sorted(row.tobytes() for row in np.hstack(columns[k:] + columns[:k])) for k in (0, 1)]
    return shifts[0] == shifts[1]


def start(n: int, parts: list[list[int]]) -> Orbits:
    """The matrix multiplication tensor as a cube for each part of the diagonal and orbits of unit terms for the rest.

    A part {i, j, ...} gives the cube of E_ii + E_jj + ...

    Raises:
        BadInput: parts that are not a partition of 0 .. n - 1.
    """
    if sorted(i for part in parts for i in part) != list(range(n)) or not all(parts):
        raise BadInput(f"{parts} is not a partition of the {n} places of the diagonal, 0 to {n - 1}")
    cubes = np.zeros((len(parts), n, n), dtype=np.int8)
    for cube, part in zip(cubes, parts, strict=True):
        cube[part, part] = 1
    flat = cubes.reshape(len(parts), n * n)
    rest = np.zeros((n * n,) * 3, dtype=np.int8)
    i, j, k = np.indices((n, n, n)).reshape(3, -1)
    rest[i * n + j, j * n + k, k * n + i] = 1
    for cube in flat:
        rest ^= cube[:, None, None] & cube[None, :, None] & cube[None, None, :]
    terms = [t for t in np.argwhere(rest).tolist() if t == min(t, t[1:] + t[:1], t[2:] + t[:2])]
    units = np.eye(n * n, dtype=np.int8)
    U, V, W = (units[[t[d] for t in terms]] for d in range(3))
    return Orbits(n, flat, U, V, W)


@dataclass(frozen=True)
class OrbitWalkResult(WalkResult):
    """The result of a walk over orbits."""

    orbits: Orbits


def walk_orbits(
    orbits: Orbits,
    seed: int,
    settings: WalkSettings,
    target: int = 0,
    monitor: Any = None,
    kernel: str | None = None,
) -> OrbitWalkResult:
    """Walks until the flips are used up, the scheme's rank is at most `target`, or `monitor.stop` is set.

    Releases the GIL.

    Raises:
        BadInput: more entries or orbits than the walk holds.
    """
    module = compiled()
    entries, most = orbits.n**2, module.MAX_ORBIT_BITS
    if entries > most or len(orbits.U) >= module.MAX_ORBITS:
        raise BadInput(
            f"{len(orbits.U)} orbits of {orbits.n} x {orbits.n} matrices are beyond the symmetric walk, which holds "
            f"fewer than {module.MAX_ORBITS} orbits of at most {most} entries; walk without symmetry"
        )
    result = module.walk(
        *(np.ascontiguousarray(x, dtype=np.int8) for x in (orbits.U, orbits.V, orbits.W)),
        ternary=False,
        symmetric=True,
        seed=seed & (2**64 - 1),
        flips=settings.flips,
        plus_after=settings.plus_after,
        margin=min(settings.margin, module.MAX_ORBITS - len(orbits.U)),
        target=max((target - len(orbits.cubes)) // 3, 0),
        monitor=monitor if monitor is not None else module.Monitor(),
        kernel=kernel or kernels()[-1],
    )
    found = Orbits(orbits.n, orbits.cubes, result.U, result.V, result.W).absorbed()
    return OrbitWalkResult(found.scheme(), int(result.flips), float(result.seconds), bool(result.dead), found)


@dataclass
class OrbitPool:
    """Starts of symmetric walks: mostly new cubes, else the best orbits found.

    The number of cubes mostly agrees with the target rank modulo 3.
    """

    n: int
    held: dict[int, list[Orbits]] = field(default_factory=dict)

    def draw(self, random: np.random.Generator, aim: int | None = None) -> Orbits:
        """A start for the next walk."""
        counts = list(range(1, self.n + 1))
        if aim is not None and random.random() < AIMED_SHARE:
            counts = [c for c in counts if c % 3 == aim % 3] or counts
        count = counts[int(random.integers(len(counts)))]
        if random.random() < FRESH_SHARE or not self.held.get(count):
            return self._fresh(count, random)
        return self.held[count][int(random.integers(len(self.held[count])))]

    def _fresh(self, count: int, random: np.random.Generator) -> Orbits:
        places = random.permutation(self.n).tolist()
        return start(self.n, [places[k::count] for k in range(count)])  # even parts leave the fewest orbits

    def add(self, orbits: Orbits) -> None:
        """Adds the orbits if they are among the best with their number of cubes."""
        held = self.held.setdefault(len(orbits.cubes), [])
        held.append(orbits)
        held.sort(key=lambda o: o.rank)  # stable: of equal rank the oldest come first
        if len(held) > MAX_ORBITS_PER_COUNT:
            last = [k for k, o in enumerate(held) if o.rank == held[-1].rank]
            del held[last[0] if len(last) > 1 else -1]

    def save(self, path: Path) -> None:
        """Writes the orbits as an .npz without objects."""
        kept = [o for held in self.held.values() for o in held]
        arrays = {f"{name}{k}": getattr(o, name) for k, o in enumerate(kept) for name in ("cubes", "U", "V", "W")}
        np.savez_compressed(path, **arrays)

    @classmethod
    def load(cls, n: int, path: Path) -> OrbitPool:
        """The pool that `save` wrote; every scheme is verified again.

        Raises:
            BadInput: no such file, another kind of file, or orbits that are not a scheme.
        """
        pool = cls(n)
        try:
            with np.load(path, allow_pickle=False) as file:
                for k in range(len(file.files) // 4):
                    orbits = Orbits(n, *(file[f"{name}{k}"] for name in ("cubes", "U", "V", "W")))
                    if not orbits.scheme().verify():
                        raise BadInput(f"{path} contains orbits that are not an exact scheme")
                    pool.add(orbits)
        except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(f"{path} is not a stored pool of orbits ({error}); start a new search without it") from error
        return pool


def symmetric_share(symmetry: str, shape: tuple[int, int, int], ring: str) -> float:
    """The share of a search's walks that are over orbits, for a symmetry by name.

    Raises:
        BadInput: an unknown name, or Z3 for a format or ring without that symmetry.
    """
    if symmetry not in SYMMETRIES:
        raise BadInput(f"symmetry = {symmetry!r} is unknown; choose one of {', '.join(SYMMETRIES)}")
    possible = len(set(shape)) == 1 and ring != "ZT" and shape[0] > 1
    if symmetry == "Z3" and not possible:
        raise BadInput(
            f"a scheme of format {'x'.join(map(str, shape))} over {ring} cannot be searched with symmetry Z3, which "
            'needs square matrices of side 2 or more and the ring Z2 or Z; choose symmetry "none"'
        )
    if symmetry == "auto":
        return AUTO_SHARE if possible and shape[0] >= 5 and shape[0] ** 2 <= compiled().MAX_ORBIT_BITS else 0.0
    return float(symmetry == "Z3")
