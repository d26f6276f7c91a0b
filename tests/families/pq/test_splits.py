"""One tree grown and improved: the compiled and the plain form agree, the error never rises, bad arrays are refused."""

import pytest
import torch

from basis_search.families.pq import splits
from basis_search.families.pq.reference import encode
from basis_search.families.pq.spec import Spec
from basis_search.families.pq.splits import Intervals, Tree, grow_plainly, improve_plainly, leaf_means, padded
from basis_search.families.pq.tree_annealing import descend, regrow, state_of

pytestmark = pytest.mark.fast

RIDGE = 1e-6  # empty leaves stay finite


def rows(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs [500, 12], some columns of few values and one constant; targets [500, 8] that depend on them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(500, 12, generator=generator)
    x[:, 3] = x[:, 3].round()
    x[:, 5] = 1.0
    y = torch.cat([x[:, :3], x[:, :2].abs()], 1) + torch.randn(500, 5, generator=generator)
    return x, padded(y)


def error(tree: Tree, y: torch.Tensor) -> float:
    return float((y - leaf_means(tree.codes, y, RIDGE)[tree.codes.long()]).square().sum())


def random_tree(intervals: Intervals, seed: int) -> Tree:
    generator = torch.Generator().manual_seed(seed)
    columns = torch.randint(12, (4,), generator=generator)
    cuts = torch.randint(60, (15,), generator=generator).to(torch.uint8)
    return Tree(columns, cuts, intervals.codes(columns, cuts))


def lowest_with_another_last_level(intervals: Intervals, tree: Tree, y: torch.Tensor) -> float:
    """By trying each column and each cut of it, the tables staying as they are."""
    table = leaf_means(tree.codes, y, RIDGE)
    node = tree.codes.long() >> 1
    left, right = ((y - table[2 * node + side]).square().sum(1) for side in (0, 1))
    lowest = torch.inf
    for j in range(len(intervals.bins)):
        goes = [intervals.bins[j] > k for k in [*range(int(intervals.edges[j])), splits.NO_CUT]]
        each = torch.stack([torch.where(g, right, left) for g in goes])  # [cuts, n]
        lowest = min(lowest, float(sum(each[:, node == x].sum(1).min() for x in range(8))))
    return lowest


@pytest.mark.parametrize("seed", range(4))
def test_compiled_and_plain_trees_are_the_same(seed: int) -> None:
    if not splits.COMPILED:
        pytest.skip("the compiled CPU kernels are not installed")
    x, y = rows(seed)
    intervals, candidates = Intervals.of(x), torch.arange(11)
    start = random_tree(intervals, seed)
    for compiled, plain in (
        (splits.grow(intervals, y, candidates, 1.0), grow_plainly(intervals, y, candidates, 1.0)),
        (splits.improve(intervals, y, start, candidates, 1.0), improve_plainly(intervals, y, start, candidates, 1.0)),
    ):
        assert torch.equal(compiled.columns, plain.columns)
        assert torch.equal(compiled.cuts, plain.cuts)
        assert torch.equal(compiled.codes, plain.codes)


@pytest.mark.parametrize("improve", [splits.improve, improve_plainly])
def test_improving_lowers_the_error_and_keeps_the_tree_it_was_given(improve) -> None:  # type: ignore[no-untyped-def]
    x, y = rows(0)
    intervals = Intervals.of(x)
    start = random_tree(intervals, 1)
    before = start.columns.clone(), start.cuts.clone(), start.codes.clone()
    better = start
    for _ in range(4):
        worse, better = better, improve(intervals, y, better, torch.arange(12), RIDGE)
        assert error(better, y) <= error(worse, y) * (1 + 1e-6)
    assert error(better, y) < error(start, y)
    assert torch.equal(
        worse.cuts, better.cuts
    )  # no pass changes it any more, so nor does any last level with its tables
    assert lowest_with_another_last_level(intervals, better, y) > (1 - 1e-4) * error(better, y)
    assert lowest_with_another_last_level(intervals, start, y) < error(start, y)
    assert all(torch.equal(a, b) for a, b in zip(before, (start.columns, start.cuts, start.codes), strict=True))
    assert torch.equal(intervals.codes(better.columns, better.cuts), better.codes)


def test_a_first_level_is_the_best_of_all_single_splits() -> None:
    x, y = rows(2)
    intervals = Intervals.of(x)
    tree = splits.grow(intervals, y, torch.arange(12), 0.0)
    least = torch.inf
    for j in range(12):
        for value in intervals.values[j, : int(intervals.edges[j])]:
            right = x[:, j] > value
            least = min(least, sum(float((y[s] - y[s].mean(0)).square().sum()) for s in (right, ~right)))
    right = x[:, tree.columns[0]] > intervals.thresholds(tree)[0]
    found = sum(float((y[s] - y[s].mean(0)).square().sum()) for s in (right, ~right))
    assert found == pytest.approx(least, rel=1e-5)


def test_thresholds_give_the_codes_of_the_cuts() -> None:
    x, y = rows(3)
    intervals = Intervals.of(x)
    tree = splits.grow(intervals, y, torch.arange(12), 1.0)
    params = {"split_columns": tree.columns[None].int(), "thresholds": intervals.thresholds(tree)[None]}
    assert torch.equal(encode(Spec(1), params, x.double())[:, 0], tree.codes.long())
    again = intervals.tree(tree.columns, intervals.thresholds(tree))
    assert torch.equal(again.codes, tree.codes)


def test_the_search_never_ends_above_where_it_began_and_is_deterministic() -> None:
    x, y = rows(4)
    intervals = Intervals.of(x)
    start = regrow(intervals, x, y, state_of([random_tree(intervals, s) for s in range(3)], y, 1.0), 1.0)
    one, other = (descend(intervals, y, start, 1.0, kicks=20, seed=0) for _ in range(2))
    assert one.error < start.error
    assert one.error == other.error
    assert all(torch.equal(a.codes, b.codes) for a, b in zip(one.trees, other.trees, strict=True))


def test_the_compiled_module_refuses_arrays_that_do_not_fit() -> None:
    if not splits.COMPILED:
        pytest.skip("the compiled CPU kernels are not installed")
    x, y = rows(0)
    intervals = Intervals.of(x)
    with pytest.raises(ValueError, match="the residual's width is 5; it must be a multiple of 8"):
        splits.grow(intervals, y[:, :5].contiguous(), torch.arange(12), 1.0)
    with pytest.raises(ValueError, match="candidate column 12 is out of range: bins have 12 columns"):
        splits.grow(intervals, y, torch.arange(13), 1.0)
    start = random_tree(intervals, 0)
    beyond = Tree(start.columns + 12, start.cuts, start.codes)
    with pytest.raises(ValueError, match=r"split column \d+ is out of range: bins have 12 columns"):
        splits.improve(intervals, y, beyond, torch.arange(12), 1.0)
