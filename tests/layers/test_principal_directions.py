"""Principal directions: exact ones are eigenvectors of W S W^T, those of wide layers nearly as good."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from basis_search.layers import principal_directions as module
from basis_search.layers.principal_directions import principal_directions, width

pytestmark = pytest.mark.fast


def a_problem(in_features: int, out_features: int, decay: float) -> tuple[Tensor, Tensor]:
    """W [out, in], and S whose i-th eigenvalue is i^-decay."""
    draw = torch.Generator().manual_seed(in_features)
    axes = torch.linalg.qr(torch.randn(in_features, in_features, dtype=torch.float64, generator=draw)).Q
    energies = torch.arange(1, in_features + 1, dtype=torch.float64) ** -decay
    return torch.randn(out_features, in_features, dtype=torch.float64, generator=draw), (axes * energies) @ axes.T


def error(weight: Tensor, moment: Tensor, up: Tensor) -> float:
    left = weight - up @ (up.T @ weight)
    return float((left @ moment * left).sum())


@pytest.mark.parametrize("shape", [(24, 18), (18, 24)])
def test_every_rank_has_the_least_error(shape: tuple[int, int]) -> None:
    weight, moment = a_problem(*shape, 1.0)
    energies = torch.linalg.eigvalsh(weight @ moment @ weight.T).flip(0)
    axes = principal_directions(weight, moment, 5)
    assert axes.shape == (shape[1], 18)
    torch.testing.assert_close(axes.T @ axes, torch.eye(18, dtype=torch.float64))
    for rank in (1, 5, 17):
        assert error(weight, moment, axes[:, :rank]) == pytest.approx(float(energies[rank:].sum()), rel=1e-9)


@pytest.mark.parametrize(("decay", "excess"), [(0.0, 2e-3), (0.5, 1e-3), (2.0, 1e-6)])
def test_a_small_rank_of_a_wide_layer_has_nearly_the_least_error(
    decay: float, excess: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, moment = a_problem(256, 320, decay)
    least = error(weight, moment, principal_directions(weight, moment, 40)[:, :40])
    monkeypatch.setattr(module, "EXACT_SIDE", 256)
    near = principal_directions(weight, moment, 40)
    assert near.shape == (320, 64)
    torch.testing.assert_close(near.T @ near, torch.eye(64, dtype=torch.float64))
    assert torch.equal(principal_directions(weight, moment, 30), near), "ranks of one width share the directions"
    assert least <= error(weight, moment, near[:, :40]) <= (1 + excess) * least


def test_only_small_ranks_of_wide_layers_are_iterated() -> None:
    wide = torch.empty(4096, 11008, device="meta")
    assert [width(rank, wide) for rank in (1, 42, 43, 300, 682, 683, 4096)] == [64, 64, 128, 512, 1024, 4096, 4096]
    assert width(1, torch.empty(2047, 4096, device="meta")) == 2047
