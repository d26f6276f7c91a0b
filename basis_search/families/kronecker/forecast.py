"""Predicted error and latency of a chain: block singular values beyond the ranks, columns scaled by C_ii.

Rows are scaled by G_ii where the layer has an output metric G.
"""

from __future__ import annotations

import weakref

import torch

from basis_search.families.kronecker import blocks
from basis_search.families.kronecker.patterns import KroneckerPattern
from basis_search.families.kronecker.spec import Spec, require_fit
from basis_search.families.kronecker.time_model import REFERENCE_CPU
from basis_search.families.protocol import Forecast, batched_eigvalsh
from basis_search.layers.layer import Layer
from basis_search.layers.output_spectrum import covariance, output_gains, searched_power

MOST_MULTIPLICATIONS = 2e7
"""Limit on multiplications for the eigenvalues of one split; beyond it an evenly spaced sample of blocks is used."""

Split = tuple[int, ...]
_tails: weakref.WeakKeyDictionary[Layer, dict[Split, list[float]]] = weakref.WeakKeyDictionary()


def forecast(spec: Spec, layer: Layer) -> Forecast:
    """The sum of the splits' errors, which hierarchical factorisation attains for uncorrelated inputs; latency by the
    time model of one CPU.

    Raises:
        BadInput: the chain is smaller than the layer.
    """
    require_fit(spec, layer)
    chain = spec.parsed
    known = _tails.setdefault(layer, {})
    here = layer.on_device()
    error = 0.0
    for cut in range(1, len(chain)):
        left, right = chain[:cut].product, chain[cut:].product
        key = (left.a, left.b, left.d, right.a, right.c, right.d)
        if key not in known:
            known[key] = _block_tails(here, chain.product, left, right)
        error += known[key][min(left.rank_with(right), len(known[key]) - 1)]
    ratio = REFERENCE_CPU.dense_ratio(chain, layer.out_features, layer.in_features, layer.batch)
    return Forecast(min(1.0, error), ratio)


def _block_tails(
    layer: Layer, product: KroneckerPattern, left: KroneckerPattern, right: KroneckerPattern
) -> list[float]:
    """Relative energy beyond rank 0, 1, ... of the blocks of a split, ranks + 1 values, read at once."""
    weight = layer.weight
    target = weight.new_zeros(product.rows, product.columns, dtype=torch.float32)
    scale = covariance(layer).diagonal().clamp_min(0).sqrt()
    gains = output_gains(layer).sqrt()[:, None]
    target[: layer.out_features, : layer.in_features] = (gains * weight.double() * scale).float()
    parts = blocks.as_blocks(blocks.gather(target, product), left, right)
    parts = parts.reshape(-1, *parts.shape[-2:])  # [blocks, b_1, c_2]
    if parts.shape[1] > parts.shape[2]:
        parts = parts.mT
    side, length = parts.shape[1:]
    most = max(1, int(MOST_MULTIPLICATIONS / (side * side * (length + 10 * side))))
    chosen = parts[:: -(-len(parts) // most)]
    energies = batched_eigvalsh(chosen @ chosen.mT).clamp_min(0).flip(1).double().sum(0)  # [side]
    tails = torch.cat([energies.flip(0).cumsum(0).flip(0), energies.new_zeros(1)])
    share = target.double().square().sum() / max(searched_power(layer), 1e-300)
    values: list[float] = (tails / tails[0].clamp_min(1e-300) * share.clamp_max(1.0)).tolist()
    return values
