"""Layers with the same inputs and shared bases: their outputs are parts of the whole layer's output."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import basis_search as bs
from basis_search.families import stl
from basis_search.families.stl.reference import reference
from basis_search.families.stl.shared_bases import fit_group

pytestmark = pytest.mark.fast


def three(bias: bool = True) -> list[bs.Layer]:
    torch.manual_seed(0)
    x = torch.randn(256, 32) @ torch.randn(32, 32)
    return [bs.Layer.from_linear(torch.nn.Linear(32, out, bias=bias), x, f"l{out}", batch=8) for out in (32, 16, 16)]


@pytest.mark.parametrize(
    ("spec", "bias"),
    [(stl.Spec(4, 24, sweeps=2), True), (stl.Spec(4, 24, waist=4), False), (stl.Spec(2, 7, "winograd"), True)],
)
def test_the_parts_make_up_the_whole_layer(spec: stl.Spec, bias: bool) -> None:
    layers = three(bias)
    parts = fit_group(spec, layers)
    joined = None if not bias else torch.cat([layer.bias for layer in layers if layer.bias is not None])
    whole = stl.fit(spec, replace(layers[0], weight=torch.cat([layer.weight for layer in layers]), bias=joined))
    x = layers[0].held_out.double()
    ys = [reference(spec, params, x) for params in parts]
    assert [y.shape[1] for y in ys] == [32, 16, 16]
    torch.testing.assert_close(torch.cat(ys, dim=1), reference(spec, whole, x))
    assert all(torch.equal(part["encode"], parts[0]["encode"]) for part in parts)
    assert all(torch.equal(part["decode"], parts[0]["decode"]) for part in parts)


def test_layers_that_cannot_share_are_refused() -> None:
    first, second, _ = three()
    with pytest.raises(bs.BadInput, match="no layer was given"):
        fit_group(stl.Spec(4, 24), [])
    with pytest.raises(bs.BadInput, match="'l32' and 'l16' have different inputs; fit them separately"):
        fit_group(stl.Spec(4, 24), [first, replace(second, inputs=second.inputs + 1)])
    with pytest.raises(bs.BadInput, match="differ in dtype or bias"):
        fit_group(stl.Spec(4, 24), [first, replace(second, bias=None)])
    with pytest.raises(bs.BadInput, match="has 16 outputs, not a multiple of 3"):
        fit_group(stl.Spec(3, 15), [second])
