"""The mean that a bias takes up, where the moment stems from more rows than the samples."""

from __future__ import annotations

import pytest
import torch

from basis_search.families import kronecker
from basis_search.layers.layer import Layer
from basis_search.layers.output_spectrum import covariance

pytestmark = pytest.mark.fast


def a_layer() -> Layer:
    """200 samples of 20,000 rows whose mean is nearly all of their second moment in some directions."""
    draw = torch.Generator().manual_seed(0)
    x = 5 + torch.randn(20000, 64, generator=draw)
    weight, bias = torch.randn(48, 64, generator=draw), torch.randn(48, generator=draw)
    return Layer("l", weight, bias, x[:200], x[200:400], 8, moment=x.T @ x / len(x))


def test_the_covariance_is_a_moment() -> None:
    values = torch.linalg.eigvalsh(covariance(a_layer()))
    assert float(values[0]) >= -1e-5 * float(values.mean())


def test_a_chain_is_not_worse_than_no_layer() -> None:
    layer, spec = a_layer(), kronecker.Spec("(1,6,8,8)*(8,8,8,1)")
    y = kronecker.KERNELS[0].run(spec, kronecker.fit(spec, layer), layer.held_out)
    exact = layer.held_out @ layer.weight.T + layer.bias
    assert float((y - exact).square().sum() / (exact - exact.mean(0)).square().sum()) < 1
