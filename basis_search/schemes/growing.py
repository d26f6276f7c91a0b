"""A start for a large format, grown side by side from smaller ones: (n, m, p - 1) and a slice give (n, m, p)."""

from __future__ import annotations

from basis_search.schemes.actions import extend, to_format
from basis_search.schemes.constructions import standard
from basis_search.schemes.discovery import Search
from basis_search.schemes.formats import ordered
from basis_search.schemes.scheme import BilinearScheme
from basis_search.schemes.walking import WalkRing, walkable

LARGEST_SIDE = 4  # up to here walks from the standard algorithm get down by themselves


def needs_growing(n: int, m: int, p: int) -> bool:
    """Whether walks from the standard algorithm would stay far above what extensions reach."""
    return max(n, m, p) > LARGEST_SIDE


def grown(
    n: int, m: int, p: int, ring: WalkRing, seconds: float = 20.0, seed: int = 0, workers: int = 1
) -> BilinearScheme:
    """A scheme of the format over `ring`, by extending the best that a search for one side less finds.

    The time goes to the formats on the way in equal parts.

    Raises:
        BadInput: what `Search` refuses.
    """
    chain = [ordered(n, m, p)]
    while needs_growing(*chain[-1]):
        a, b, c = chain[-1]
        chain.append(ordered(a, b, c - 1))
    scheme = walkable(standard(*chain[-1]), ring)
    for smaller, larger in zip(chain[:0:-1], chain[-2::-1], strict=True):
        search = Search(*smaller, ring, seed=seed, workers=workers, starts=[to_format(scheme, *smaller)])
        a, b, c = larger
        scheme = extend(to_format(search.run(seconds=seconds / (len(chain) - 1)), a, b, c - 1), "p")
    return to_format(scheme, n, m, p)
