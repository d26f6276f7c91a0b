"""Product quantisation on the test double of a GPU: the CPU's trees, centroids and tables, and few values read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from pretend_cuda import pretend_cuda
from torch import Tensor

from basis_search.families import pq
from basis_search.families.pq import batched_trees, cache_lines, rotation, splits
from basis_search.families.pq.batched_trees import learn_trees
from basis_search.families.pq.refine import fit_refined
from basis_search.families.pq.spec import bounds
from basis_search.families.pq.splits import Intervals
from basis_search.families.pq.trees import learn_tree
from basis_search.layers.layer import Layer


def rows(n: int, width: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=draw) @ torch.randn(width, width, generator=draw) + 1


def a_layer(out: int = 24, width: int = 37, n: int = 300) -> Layer:
    draw = torch.Generator().manual_seed(1)
    weight, bias, x = torch.randn(out, width, generator=draw), torch.randn(out, generator=draw), rows(n + 40, width)
    return Layer("l", weight, bias, x[:n], x[n:], 8)


SHAPES = ((500, 64, 16), (300, 37, 5), (300, 40, 40), (17, 64, 3), (2, 7, 2))


@pytest.mark.parametrize("grid", [True, False])
@pytest.mark.parametrize(("n", "width", "codebooks"), SHAPES)
@pytest.mark.parametrize("kind", ["distinct", "repeated values", "constant columns"])
def test_trees_learnt_together_are_those_learnt_one_by_one(
    n: int, width: int, codebooks: int, kind: str, grid: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = rows(n, width).double()
    if kind == "repeated values":
        x = (x / 4).round()
    if kind == "constant columns":
        x[:, ::2] = 1
    monkeypatch.setattr(batched_trees, "MOST_VALUES", 1 << 16)  # in several parts
    columns, thresholds, codes = learn_trees(x, codebooks, levels_of_8_bits=grid)
    starts = bounds(width, codebooks)
    for c in range(codebooks):
        own = np.arange(starts[c], starts[c + 1])
        part = np.ascontiguousarray(x[:, own].numpy())
        want_columns, want_thresholds, want_codes = learn_tree(part, own, levels_of_8_bits=grid)
        # A level without a split has no column that is better than another.
        split = np.array([(want_thresholds[2**t - 1 : 2 ** (t + 1) - 1] < batched_trees.NEVER).any() for t in range(4)])
        assert np.array_equal(columns[c].numpy()[split], want_columns[split])
        np.testing.assert_allclose(thresholds[c].numpy(), want_thresholds, rtol=1e-12, atol=1e-12)
        assert np.array_equal(codes[:, c].numpy(), want_codes)


@pytest.mark.parametrize("encoder", ["tree", "kmeans"])
@pytest.mark.parametrize("table", ["uint8", "float32"])
def test_a_fit_agrees_with_the_cpus_and_reads_little(encoder: str, table: str) -> None:
    spec, layer = pq.Spec(5, encoder, table), a_layer()
    want, predicted = pq.fit(spec, layer), pq.forecast(spec, layer)
    with pretend_cuda() as cuda:
        moved = layer.to("cuda").on_device()
        before = cuda.synchronizations
        params = pq.fit(spec, moved)
        assert cuda.synchronizations - before <= (6 if encoder == "tree" else 70)
        assert {t.device.type for t in params.values()} == {"cuda"}
        before = cuda.synchronizations
        assert pq.forecast(spec, moved).error == pytest.approx(predicted.error, rel=1e-9)
        assert cuda.synchronizations - before <= 5
        found = {name: t.cpu() for name, t in params.items()}
    for name, tensor in want.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)


def refined(layer: Layer) -> list[Tensor]:
    spec = pq.Spec(3, table="float32")
    return list(fit_refined(spec, layer).values())


def learnt_rotation(layer: Layer) -> list[Tensor]:
    return [rotation.learn_rotation(layer.inputs, 5, rounds=2)]


def lines(layer: Layer) -> list[Tensor]:
    return [cache_lines.columns_of_lines(layer.inputs, layer.weight, 2, 5)]


def codebook(layer: Layer) -> list[Tensor]:
    found = pq.Codebook.fit(layer.inputs, layer.weight.T, 5, lines=2)
    return [found.matmul(layer.inputs, "torch"), found.encode(layer.inputs)]


@pytest.mark.parametrize(
    ("computed", "reads"),
    [(refined, 500), (learnt_rotation, 160), (lines, 3), (codebook, 30)],
    ids=["refined", "rotation", "lines", "codebook"],
)
def test_trees_rotations_and_columns_agree_with_the_cpus(
    computed: Callable[[Layer], list[Tensor]], reads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("basis_search.families.pq.refine.MOST_REGROWN", 2)
    layer = a_layer(width=20, n=100)
    want = computed(layer)
    with pretend_cuda() as cuda:
        moved = layer.to("cuda").on_device()
        before = cuda.synchronizations
        found = computed(moved)
        assert cuda.synchronizations - before <= reads
        assert {t.device.type for t in found} == {"cuda"}
        found = [t.cpu() for t in found]
    for one, other in zip(found, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("step", [splits.grow, splits.improve], ids=["grow", "improve"])
def test_growing_and_improving_a_tree_reads_nothing(step: Callable[..., splits.Tree]) -> None:
    x, y = rows(200, 12), splits.padded(rows(200, 8, seed=2))
    with pretend_cuda() as cuda:
        intervals, residual = Intervals.of(x.to("cuda")), y.to("cuda")
        candidates = torch.arange(12, device="cuda")
        start = splits.grow(intervals, residual, candidates[:2], 1.0)
        arguments = (
            (intervals, residual, start, candidates, 1.0)
            if step is splits.improve
            else (intervals, residual, candidates, 1.0)
        )
        before = cuda.synchronizations
        step(*arguments)
        assert cuda.synchronizations == before


@pytest.mark.parametrize("zeros", [0, 2])
def test_a_rotation_by_eigenvectors_is_that_of_the_singular_vectors(zeros: int) -> None:
    matrix = rows(20, 20).double()
    matrix[:, :zeros] = 0
    found = rotation.rotation_by_eigenvectors(matrix)
    assert float((found.T @ found - torch.eye(20)).abs().max()) <= 1e-12
    assert float((found * matrix).sum()) == pytest.approx(float(torch.linalg.svdvals(matrix).sum()), rel=1e-12)


def test_intervals_are_those_of_each_column_alone() -> None:
    x = rows(300, 6).double()
    x[:, 1], x[:, 2], x[:, 3] = 1, x[:, 2].round(), x[:, 3].clamp(-0.2, 0.2)
    intervals = Intervals.of(x)
    for j, column in enumerate(x.T):
        distinct = torch.unique(column)
        if len(distinct) > splits.MOST_INTERVALS:
            at = torch.linspace(0, 1, splits.MOST_INTERVALS, dtype=torch.float64)
            distinct = torch.unique(torch.quantile(distinct, at))
        edges = distinct[:-1] / 2 + distinct[1:] / 2
        assert int(intervals.edges[j]) == len(edges)
        torch.testing.assert_close(intervals.values[j, : len(edges)], edges, rtol=0, atol=0)
        assert bool(torch.isinf(intervals.values[j, len(edges) :]).all())
        assert torch.equal(intervals.bins[j].long(), torch.bucketize(column.contiguous(), edges))


@pytest.mark.parametrize("spec", [pq.Spec(5), pq.Spec(5, "kmeans", "float32")], ids=str)
def test_the_torch_kernel_is_one_graph(spec: pq.Spec) -> None:
    layer = a_layer()
    kernel = next(k for k in pq.KERNELS if k.name == "torch")
    packed = kernel.pack(spec, pq.fit(spec, layer))
    compiled = torch.compile(lambda x: kernel.run(spec, packed, x), fullgraph=True, backend="eager")
    assert torch.equal(compiled(layer.held_out), kernel.run(spec, packed, layer.held_out))


@pytest.mark.parametrize(("width", "codebooks"), [(12, 4), (13, 4), (7, 7), (5, 1)])
def test_nearest_centroids_of_all_groups_are_those_of_each(width: int, codebooks: int) -> None:
    x, centroids = rows(50, width).double(), rows(16, width, seed=3).double()
    codes = pq.reference.encode(pq.Spec(codebooks, "kmeans"), {"centroids": centroids}, x.view(5, 10, width))
    assert codes.shape == (5, 10, codebooks)
    starts = bounds(width, codebooks)
    for c in range(codebooks):
        own = slice(starts[c], starts[c + 1])
        assert torch.equal(codes.view(50, -1)[:, c], torch.cdist(x[:, own], centroids[:, own]).argmin(1))
