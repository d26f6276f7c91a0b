"""Fits weighed by an output metric G: better in it than fits that do not know it, and the same as those for G = I."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from pretend_cuda import pretend_cuda
from torch import Tensor

from basis_search.evaluation.operator_error import held_out_errors
from basis_search.families import FAMILIES, fp8, int8, kronecker, pq, sparse24, weight_only
from basis_search.layers.layer import Layer
from basis_search.layers.output_metric import OutputMetric

CASES = [
    pytest.param("kronecker", kronecker.Spec("(1,6,8,8)*(8,8,8,1)"), 0.9, 40, id="kronecker-2"),
    pytest.param("kronecker", kronecker.Spec("(1,5,4,10)*(4,5,4,2)*(16,2,4,1)"), 0.95, 40, id="kronecker-3-padded"),
    pytest.param("int8", int8.Spec(reduce_range=False), 1, 40, id="int8"),
    pytest.param("weight_only", weight_only.Spec(8, 0), 0.5, 40, id="weight_only-8"),
    pytest.param("weight_only", weight_only.Spec(4, 32), 0.5, 40, id="weight_only-4"),
    pytest.param("fp8", fp8.Spec("dynamic", "row"), 0.9, 40, id="fp8"),
    pytest.param("sparse24", sparse24.Spec(), 0.9, 40, id="sparse24"),
    pytest.param("pq", pq.Spec(16), 0.97, 40, id="pq-tree"),
    pytest.param("pq", pq.Spec(11, table="float32"), 0.97, 40, id="pq-tree-odd"),
    pytest.param("pq", pq.Spec(16, "kmeans"), 1, 110, id="pq-kmeans"),
]
"""Family, spec, the most that a metric leaves of the weighted error, and how often a fit waits for a device."""
OUT, IN = 48, 64


def a_layer(seed: int, metric: OutputMetric | None = None, bias: bool = True) -> Layer:
    """Outputs that differ in what they are felt, and inputs whose spectrum falls."""
    draw = torch.Generator().manual_seed(seed)
    mixed = torch.randn(IN, IN, generator=draw) * torch.linspace(2, 0.1, IN)
    x = torch.randn(700, IN, generator=draw) @ mixed + torch.randn(IN, generator=draw)
    weight = torch.randn(OUT, IN, generator=draw) / 8
    own = torch.randn(OUT, generator=draw) if bias else None
    return Layer("l", weight, own, x[:500], x[500:], 8, output_metric=metric)


def a_metric(seed: int, wide: bool = False) -> OutputMetric:
    """A few strong directions and different scales; as a diagonal and a factor where `wide`."""
    draw = torch.Generator().manual_seed(seed)
    factor, rest = torch.randn(OUT, 6, generator=draw), 0.1 + torch.rand(OUT, generator=draw) ** 4
    apart = OutputMetric(rest=rest, factor=factor)
    return apart if wide else OutputMetric(apart.dense(torch.float32))


def outputs(name: str, spec: Any, layer: Layer, params: dict[str, Tensor]) -> Tensor:
    reference = FAMILIES[name].KERNELS[0]
    return reference.run(spec, reference.pack(spec, params), layer.held_out.to(layer.dtype))


@pytest.mark.parametrize(("name", "spec", "most", "_waits"), CASES)
def test_the_weighted_error_is_lower_than_without_the_metric(name: str, spec: Any, most: float, _waits: int) -> None:
    family, ratios = FAMILIES[name], []
    for seed in range(3):
        layer = a_layer(seed, a_metric(seed, wide=seed == 2), bias=seed != 1)
        plain = family.fit(spec, dataclasses.replace(layer, output_metric=None))
        found, before = (held_out_errors(layer, family, spec, p).weighted for p in (family.fit(spec, layer), plain))
        assert found is not None
        assert before is not None
        ratios.append(found / before)
    assert max(ratios) <= 1 + 1e-6
    assert min(ratios) <= most


@pytest.mark.parametrize("form", ["matrix", "factor", "scaled", "zero"])
@pytest.mark.parametrize(("name", "spec", "_most", "_waits"), CASES)
def test_a_metric_without_preference_changes_nothing(
    name: str, spec: Any, _most: float, _waits: int, form: str
) -> None:
    """For G = I the fit is that without G to rounding; multiples of I and G = 0 are no preference either."""
    layer = dataclasses.replace(a_layer(5), dtype=torch.float64)
    unit = torch.eye(OUT)
    metric = {
        "matrix": OutputMetric(unit),
        "factor": OutputMetric(rest=torch.ones(OUT), factor=torch.zeros(OUT, 4)),
        "scaled": OutputMetric(7.0 * unit),
        "zero": OutputMetric(0.0 * unit),
    }[form]
    want = outputs(name, spec, layer, FAMILIES[name].fit(spec, layer))
    found = outputs(name, spec, layer, FAMILIES[name].fit(spec, dataclasses.replace(layer, output_metric=metric)))
    torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "spec", "_most", "waits"), CASES)
def test_a_fit_on_a_device_is_the_cpus_and_seldom_waits(name: str, spec: Any, _most: float, waits: int) -> None:
    layer = dataclasses.replace(a_layer(0, a_metric(0)), dtype=torch.float64)
    want = outputs(name, spec, layer, FAMILIES[name].fit(spec, layer))
    with pretend_cuda() as cuda:
        moved = layer.to("cuda").on_device()
        before = cuda.synchronizations
        params = FAMILIES[name].fit(spec, moved)
        assert cuda.synchronizations - before <= waits
        assert {tensor.device.type for tensor in params.values()} == {"cuda"}
        found = {key: tensor.cpu() for key, tensor in params.items()}
    torch.testing.assert_close(outputs(name, spec, layer, found), want, rtol=1e-5, atol=1e-5)


def test_a_chain_under_noise_that_the_model_does_not_feel_is_found() -> None:
    chain = "(1,6,8,8)*(8,8,8,1)"
    draw = torch.Generator().manual_seed(0)
    layer = a_layer(3)
    planted = kronecker.initialize(kronecker.Spec(chain), layer, seed=1)
    factors = [planted[f"factor_{index}"].double() for index in range(2)]
    felt = torch.linalg.qr(torch.randn(OUT, OUT, generator=draw).double()).Q[:, :20]
    unfelt = torch.randn(OUT, IN, generator=draw).double()
    unfelt -= felt @ (felt.T @ unfelt)
    weight = kronecker.Factorization(kronecker.Spec(chain).parsed, factors, 0, 0, 0).to_dense()
    noisy = dataclasses.replace(
        layer, weight=(weight + 0.3 * weight.std() * unfelt).float(), output_metric=OutputMetric(felt @ felt.T)
    )
    family, spec = FAMILIES["kronecker"], kronecker.Spec(chain)
    blind = dataclasses.replace(noisy, output_metric=None)
    found, before = (held_out_errors(noisy, family, spec, family.fit(spec, one)).weighted for one in (noisy, blind))
    assert found is not None
    assert before is not None
    assert found <= 0.1 * before
