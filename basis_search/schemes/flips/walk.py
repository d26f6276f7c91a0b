"""One walk over the flip graph from Python: a scheme in, the best scheme met out; the walk itself is compiled.

A flip turns a.b.c + a.b'.c' into a.(b + b').c + a.b'.(c' - c); terms whose factor becomes zero are dropped.
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
    """The compiled module.

    Raises:
        BadInput: it is not installed.
    """
    try:
        return importlib.import_module("basis_kernels.schemes._cpu")
    except ImportError as error:
        raise BadInput(
            "the compiled CPU kernels are not installed, and schemes are discovered by them alone; "
            "a C++ compiler at install time builds them"
        ) from error


@dataclass(frozen=True)
class WalkSettings:
    """How long and how boldly to walk.

    Args:
        flips: at most.
        plus_after: flips without a reduction until a plus transition lifts the rank by one.
        margin: how far above the best rank plus transitions may lead; 0 makes none.
    """

    flips: int = 20_000_000
    plus_after: int = 5_000
    margin: int = 2


@dataclass(frozen=True)
class WalkResult:
    """Where a walk got to. `seconds` are CPU seconds of the thread that walked; `dead`: no flip was left."""

    scheme: BilinearScheme
    flips: int
    seconds: float
    dead: bool


def walkable(scheme: BilinearScheme, ring: WalkRing) -> BilinearScheme:
    """The scheme over the ring of a walk: reduced modulo 2, or read as ternary.

    Raises:
        BadInput: a coefficient that the ring does not have.
    """
    if scheme.ring == ring:
        return scheme
    return scheme.reduce_mod(2) if ring == "Z2" else scheme.to_ring("ZT")


def check_limits(n: int, m: int, p: int, ring: WalkRing, rank: int | None = None) -> None:
    """Refuses what the walk cannot hold; without a rank, that of the standard algorithm is meant.

    Raises:
        BadInput: matrices of too many entries, or too many terms.
    """
    module = compiled()
    rank = n * m * p if rank is None else rank
    limit = module.MAX_BITS // (2 if ring == "ZT" else 1)
    largest = max(n * m, m * p, n * p)
    if largest > limit:
        raise BadInput(
            f"format {n}x{m}x{p} has matrices of {largest} entries; the walk over {ring} packs at most {limit}"
        )
    if rank >= module.MAX_RANK:
        raise BadInput(
            f"a scheme of rank {rank} is beyond the {module.MAX_RANK - 1} terms that the walk holds; "
            "build the format from smaller ones by tensor_product"
        )


def factors(scheme: BilinearScheme, ring: WalkRing) -> tuple[NDArray[np.int8], ...]:
    """U, V, W as the walk takes them.

    Raises:
        BadInput: a coefficient that the ring of the walk does not have, or a format beyond the limits.
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
    """Walks from `scheme` until the flips are spent, the rank is at most `target`, or `monitor.stop` is set.

    The same arguments give the same scheme with every kernel. The GIL is released.

    Raises:
        BadInput: a ring other than Z2 and ZT, a scheme that does not fit it or the limits, an unknown kernel.
    """
    if ring not in ("Z2", "ZT"):
        raise BadInput(f"there is no walk over {ring!r}; over 'Z2' and 'ZT' there is")
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
