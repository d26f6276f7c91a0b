"""Random factors that preserve the variance of their inputs: Var w = gain^2 / c, as each output sums c products.

The factors' gains multiply, whatever the ranks between them; the last factor compensates for zero-padded inputs.
"""

from __future__ import annotations

import torch

from basis_search.errors import BadInput
from basis_search.families.kronecker.spec import Spec, require_fit
from basis_search.families.protocol import Params
from basis_search.layers.layer import LayerLike


def initialize(
    spec: Spec, layer: LayerLike, *, bias: bool = True, gain: float = 1.0, seed: int | None = None
) -> Params:
    """Parameters of an untrained layer: Var y = gain^2 Var x for inputs of equal variance, and a zero bias.

    Args:
        spec: the chain.
        layer: its sides, dtype and device.
        bias: whether the layer has one.
        gain: 1 preserves the variance; 3^{-1/2} matches torch.nn.Linear, 2^{1/2} suits a following ReLU.
        seed: of the random factors, which are drawn on the CPU: it gives the same ones on every device; torch's default
            generator of the CPU if None.

    Raises:
        BadInput: the chain is smaller than the layer, or the gain is not positive.
    """
    require_fit(spec, layer)
    if not gain > 0:
        raise BadInput(f"gain is {gain}, but a number above 0 is needed; 1 keeps the variance")
    draw = None if seed is None else torch.Generator().manual_seed(seed)
    chain = spec.parsed
    rows, columns = chain.shape
    share = gain ** (1 / len(chain))
    params: Params = {}
    for index, pattern in enumerate(chain):
        scale = share / pattern.c**0.5
        if index + 1 == len(chain):
            scale *= (columns / layer.in_features) ** 0.5
        w = torch.randn(pattern.storage, generator=draw) * scale
        params[f"factor_{index}"] = w.to(layer.device, layer.dtype)
    if bias:
        params["bias"] = torch.zeros(layer.out_features, dtype=layer.dtype, device=layer.device)
    if rows > layer.out_features:
        params["out_features"] = torch.tensor(layer.out_features, device=layer.device)
    return params
