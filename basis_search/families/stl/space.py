"""Search space of Strassen-Tile layers: bases, ranks and low-rank parts that cost less than the dense layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from basis_search.errors import BadInput
from basis_search.families import dense
from basis_search.families.stl.cost import cost
from basis_search.families.stl.spec import EXACT, TERNARY, Spec
from basis_search.families.stl.tile_shape import sides
from basis_search.layers.layer import Layer
from basis_search.schemes.numerical import approximation, ternary_catalogue

THIN_BATCH = 4
"""Batches below this size are also searched with rectangular tiles."""
SWEPT_SIDE = 1600
"""Largest normal matrix for which the search fits bases: up to it a round takes a tenth of a second."""


@dataclass
class Space:
    """Bounds of the search.

    Attributes:
        tiles: tile sizes for approximate and ternary bases.
        rectangles: tiles for layers of fewer than four rows, which square tiles would pad with zeros.
        ternary: kinds of ternary bases, which are so cheap that narrow layers afford a higher rank.
        least_rank: smallest share of the plain product's t^3 multiplications.
        exact: names of exact schemes.
        waists: ranks of a low-rank part, as shares of the layer's smaller side.
        sweeps: rounds in which approximate bases are fitted to the layer; 0 where a round would be slow.
        most_flops: limit on operations, as a share of the dense layer's.
    """

    tiles: tuple[int, ...] = (2, 4)
    rectangles: tuple[str, ...] = ("2x4x4",)
    ternary: tuple[str, ...] = TERNARY
    least_rank: float = 0.25
    exact: tuple[str, ...] = ("winograd", "winograd2")
    waists: tuple[float, ...] = (0.0, 0.03125, 0.0625, 0.125)
    sweeps: int = 4
    most_flops: float = 1.0


def suggest(trial: Any, layer: Layer, space: Space) -> Spec:
    """A spec that costs less than the dense layer.

    Raises:
        BadInput: there is none, because the layer is too narrow for encode and decode to pay off.
    """
    limit = space.most_flops * dense.cost(dense.Spec(), layer).flops
    waists = sorted({int(share * min(layer.in_features, layer.out_features)) for share in space.waists})
    bases: dict[str, list[Spec]] = {}
    tiles: list[int | str] = [*space.tiles, *(space.rectangles if layer.batch < THIN_BATCH else ())]
    for tile in tiles:
        n, k, m = sides(tile)
        least, label = space.least_rank * n * k * m, tile if isinstance(tile, str) else f"{tile}x{tile}"
        bases[f"approximate {label}"] = [
            Spec(tile, rank, "approximate", space.sweeps if rank * layer.in_features <= SWEPT_SIDE * k else 0)
            for rank in approximation.known_ranks(n, k, m)
            if rank >= least
        ]
        for name in space.ternary if isinstance(tile, int) else ():
            ranks = ternary_catalogue.known_ranks(n, k, m)
            bases[f"{name} {label}"] = [Spec(tile, rank, name) for rank in ranks if rank >= least]
    for name in space.exact:
        bases[name] = [Spec(*EXACT[name], name)]
    affordable = {name: [s for s in specs if cost(s, layer).flops <= limit] for name, specs in bases.items()}
    affordable = {name: specs for name, specs in affordable.items() if specs}
    if not affordable:
        raise BadInput(
            f"stl: on layer {layer.name!r} ({layer.in_features} -> {layer.out_features}, {layer.batch} rows) every "
            f"basis costs more than {space.most_flops:g} of the dense operations; the layer is too narrow for stl"
        )
    basis = trial.suggest_categorical("basis", list(affordable))
    specs = affordable[basis]
    if specs[0].basis in EXACT:
        return specs[0]
    rank = trial.suggest_int(f"rank {basis.removeprefix('approximate ')}", specs[0].rank, specs[-1].rank)
    waist = waists[trial.suggest_int("waist", 0, len(waists) - 1)]
    # The closest rank that the budget allows with the low-rank part; without one, the closest rank alone.
    nearest = sorted(specs, key=lambda spec: abs(spec.rank - rank))
    wanted = (replace(spec, waist=waist) for spec in nearest)
    return next((spec for spec in wanted if cost(spec, layer).flops <= limit), nearest[0])
