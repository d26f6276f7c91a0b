"""A walk over the flip graph: calls the compiled walk with a scheme and returns the best scheme it visits.

A flip turns a.b.c + a.b'.c' into a.(b + b').c + a.b'.(c' - c); terms with a zero factor are dropped.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from basis_search.errors import BadInput
from basis_search.schemes.algebra.scheme import BilinearScheme

WalkRing = Literal["Z2", "ZT"]


def compiled() -> Any:
    """The module of compiled walk kernels.

    Raises:
        BadInput: it is not installed.
    """
    try:
        return importlib.import_module("basis_kernels.schemes._cpu")
    except ImportError as error:
        raise BadInput(
            "discovery needs the compiled CPU kernels, which are not installed; reinstall with a C++ compiler"
        ) from error


@dataclass(frozen=True)
class WalkSettings:
    """Settings of a walk.

    Args:
        flips: most flips.
        plus_after: flips without a reduction until a plus transition raises the rank by one.
        margin: most ranks above the best that plus transitions may reach; 0 disables them.
    """

    flips: int = 20_000_000
    plus_after: int = 5_000
    margin: int = 2


@dataclass(frozen=True)
class WalkResult:
    """The result of a walk. `seconds` is CPU time of the walking thread; `dead` means that no flip was left."""

    scheme: BilinearScheme
    flips: int
    seconds: float
    dead: bool


def walkable(scheme: BilinearScheme, ring: WalkRing) -> BilinearScheme:
    """The scheme converted to the ring of a walk: reduced modulo 2, or over ZT.

    Raises:
        BadInput: a coefficient that is not in the ring.
    """
    if scheme.ring == ring:
        return scheme
    return scheme.reduce_mod(2) if ring == "Z2" else scheme.to_ring("ZT")


def check_limits(n: int, m: int, p: int, ring: WalkRing, rank: int | None = None) -> None:
    """Checks a format and rank (by default that of the standard algorithm) against the limits of the walk.

    Raises:
        BadInput: matrices with too many entries, or too many terms.
    """
    module = compiled()
    rank = n * m * p if rank is None else rank
    limit = module.MAX_BITS // (2 if ring == "ZT" else 1)
    largest = max(n * m, m * p, n * p)
    if largest > limit:
        raise BadInput(
            f"format {n}x{m}x{p} has matrices of {largest} entries, but the walk over {ring} packs at most {limit}; "
            "build the format from smaller ones by tensor_product"
        )
    if rank >= module.MAX_RANK:
        raise BadInput(
            f"a scheme of rank {rank} is beyond the walk's limit of {module.MAX_RANK - 1} terms; "
            "build the format from smaller ones by tensor_product"
        )


def factors(scheme: BilinearScheme, ring: WalkRing) -> tuple[NDArray[np.int8], ...]:
    """U, V, W as int8 arrays for the compiled walk.

    Raises:
        BadInput: a coefficient that is not in the ring of the walk, or a format beyond the limits.
    """
    scheme = walkable(scheme, ring)
    check_limits(scheme.n, scheme.m, scheme.p, ring, scheme.rank)
    return tuple(np.ascontiguousarray(m, dtype=np.int8) for m in (scheme.U, scheme.V, scheme.W))


def kernels() -> list[str]:
    """Names of the walk kernels of this CPU, slowest first."""
    return list(compiled().kernels())


def walk(
    scheme: BilinearScheme,
    ring: WalkRing,
    seed: int,
    settings: WalkSettings = WalkSettings(),
    target: int = 0,
    monitor: Any = None,
    kernel: str | None = None,
) -> WalkResult:
    """Walks from `scheme` until the flips are used up, the rank is at most `target`, or `monitor.stop` is set.

    The same arguments give the same scheme with every kernel. Releases the GIL.

    Raises:
        BadInput: a ring other than Z2 and ZT, a scheme outside the ring or the limits, an unknown kernel.
    """
    if ring not in ("Z2", "ZT"):
        raise BadInput(f"there is no walk over {ring!r}; choose 'Z2' or 'ZT'")
    module = compiled()
    names = kernels()
    if kernel is not None and kernel not in names:
        raise BadInput(f"this CPU has no walk kernel {kernel!r}; it has {', '.join(names)}")
    margin = min(settings.margin, module.MAX_RANK - scheme.rank)
    result = module.walk(
        *factors(scheme, ring),
        ternary=ring == "ZT",
        seed=seed & (2**64 - 1),
        flips=settings.flips,
        plus_after=settings.plus_after,
        margin=margin,
        target=target,
        monitor=monitor if monitor is not None else module.Monitor(),
        kernel=kernel or names[-1],
    )
    found = BilinearScheme(scheme.n, scheme.m, scheme.p, result.U, result.V, result.W, ring)
    return WalkResult(found, int(result.flips), float(result.seconds), bool(result.dead))
