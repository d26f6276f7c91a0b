"""Shared bases of several layers with the same inputs, such as query, key and value, which are fitted as one layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from basis_search.errors import BadInput
from basis_search.families.protocol import Params
from basis_search.families.stl.fit import fit
from basis_search.families.stl.spec import Spec
from basis_search.layers.layer import Layer
from basis_search.layers.output_metric import OutputMetric


def fit_group(spec: Spec, layers: Sequence[Layer]) -> list[Params]:
    """Parameters of each layer, as returned by `fit`, with the same "encode", "decode" and "down".

    The shared bases minimise the sum of the layers' errors, in their output metrics where all have one.

    Raises:
        BadInput: there is no layer, inputs, dtypes or the presence of a bias differ, or outputs are not whole tiles.
    """
    if not layers:
        raise BadInput("stl: no layer was given to share bases; name at least one")
    first, (_, _, m) = layers[0], spec.sides
    for layer in layers:
        if layer.dtype != first.dtype or (layer.bias is None) != (first.bias is None):
            raise BadInput(f"stl: {first.name!r} and {layer.name!r} differ in dtype or bias; fit them separately")
        if layer.inputs.shape != first.inputs.shape or not torch.equal(layer.inputs, first.inputs):
            raise BadInput(f"stl: {first.name!r} and {layer.name!r} have different inputs; fit them separately")
        if layer.out_features % m:
            raise BadInput(
                f"stl: layer {layer.name!r} has {layer.out_features} outputs, not a multiple of {m}; fit it separately"
            )
    biases = [layer.bias for layer in layers if layer.bias is not None]
    weight, bias = torch.cat([layer.weight for layer in layers]), torch.cat(biases) if biases else None
    metrics = [layer.output_metric.dense() for layer in layers if layer.output_metric is not None]
    metric = OutputMetric(_block_diagonal(metrics)) if len(metrics) == len(layers) else None
    whole = fit(spec, replace(first, weight=weight, bias=bias, gradient_moment=None, output_metric=metric))
    outs = [layer.out_features for layer in layers]
    parts = [{"encode": whole["encode"], "decode": whole["decode"]} for _ in outs]
    for part, count in zip(parts, outs, strict=True):
        part["out_features"] = torch.full((), count, device=first.device)
    for part, encoded in zip(parts, torch.split(whole["weight"], [o // m for o in outs], dim=2), strict=True):
        part["weight"] = encoded.contiguous()
    for name in {"up", "bias"} & set(whole):
        for part, rows in zip(parts, torch.split(whole[name], outs), strict=True):
            part[name] = rows.contiguous()
    return [part | {"down": whole["down"]} if "down" in whole else part for part in parts]


def _block_diagonal(blocks: Sequence[torch.Tensor]) -> torch.Tensor:
    width, end = sum(map(len, blocks)), 0
    whole = blocks[0].new_zeros(width, width)
    for block in blocks:
        whole[end : end + len(block), end : end + len(block)] = block
        end += len(block)
    return whole
