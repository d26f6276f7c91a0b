"""Operations and parameters of T2T-ViT-7 with Strassen-Tile layers, r n k m / t^3 products a layer, counted by shape.

T2T-ViT-7 (Yuan et al., "Tokens-to-Token ViT", 2021): two token performers of width 64 over 56 x 56 and 28 x 28 tokens,
a projection to width 256, seven blocks with an MLP of 512 over 14 x 14 + 1 tokens, a head for 1000 classes.
"""

from __future__ import annotations

from typing import Any

from basis_search.families import dense, stl
from basis_search.layers.layer import LayerShape

Rows = list[dict[str, Any]]

IMAGES = 16
"""Images per call, so that rows fill whole tiles; counts are per image."""
WIDTH, MLP, BLOCKS, TOKENS, CLASSES = 256, 512, 7, 14 * 14 + 1, 1000
NARROW, FEATURES = 64, 32
"""Width of the token performers, and their random features."""
STAGES = ((56 * 56, 3 * 7 * 7), (28 * 28, NARROW * 3 * 3))
"""Tokens of each performer, and the width of its unfolded input."""
SPECS = tuple(stl.Spec(4, rank, basis) for basis in ("approximate", "ternary") for rank in (16, 24, 32))


def linears() -> list[tuple[int, int, int, bool]]:
    """(inputs, outputs, rows per image, bias) of every linear layer."""
    found = []
    for tokens, width in STAGES:
        found += [(width, 3 * NARROW, tokens, True), *[(NARROW, NARROW, tokens, True)] * 3]
    found.append((NARROW * 3 * 3, WIDTH, 14 * 14, True))
    for _ in range(BLOCKS):
        found += [(WIDTH, 3 * WIDTH, TOKENS, False), (WIDTH, WIDTH, TOKENS, True)]
        found += [(WIDTH, MLP, TOKENS, True), (MLP, WIDTH, TOKENS, True)]
    return [*found, (WIDTH, CLASSES, 1, True)]


def rest() -> tuple[int, int]:
    """(operations per image, parameters) outside linear layers: attention, norms, class token, positions."""
    attention = BLOCKS * 4 * TOKENS**2 * WIDTH
    performers = sum(2 * tokens * FEATURES * NARROW * 4 for tokens, _ in STAGES)
    norms = sum(2 * width + 2 * NARROW for _, width in STAGES) + (2 * BLOCKS + 1) * 2 * WIDTH
    features = len(STAGES) * FEATURES * NARROW
    return attention + performers, norms + features + WIDTH + TOKENS * WIDTH


def t2t(device: str, threads: int) -> Rows:
    """Dense, and STL of tile 4 in every linear layer: totals of linear layers, of their products, of the model."""
    other_flops, other_parameters = rest()
    shapes = [(LayerShape(k, m, rows * IMAGES), bias) for k, m, rows, bias in linears()]
    before = sum(dense.cost(dense.Spec(), shape).flops for shape, _ in shapes) / IMAGES
    rows: Rows = []
    for spec in (None, *SPECS):
        flops = core = parameters = 0.0
        for shape, bias in shapes:
            k, m = shape.in_features, shape.out_features
            cost = dense.cost(dense.Spec(), shape) if spec is None else stl.cost(spec, shape)
            flops += cost.flops / IMAGES
            parameters += cost.parameters - (0 if bias else m)
            core += 2 * shape.batch * k * m * (1 if spec is None else spec.rank / 64) / IMAGES
        rows.append(
            {
                "case": "dense" if spec is None else f"STL tile 4 rank {spec.rank}, {spec.basis} bases",
                "linear GFLOP": flops / 1e9,
                "linear ratio": flops / before,
                "core alone ratio": core / before,
                "model GFLOP": (flops + other_flops) / 1e9,
                "model ratio": (flops + other_flops) / (before + other_flops),
                "parameters, million": (parameters + other_parameters) / 1e6,
            }
        )
    return rows
