"""Second moments of streams of rows: their values, what layers share, and the reservoir's rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from basis_search.layers.dense_modules import LAST_CHANNEL
from basis_search.layers.row_sample import Reservoir
from basis_search.layers.second_moment import MOST_SETS, SecondMoment, SharedMoments, mean

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [5, 200])
def test_a_sum_over_many_calls_is_exact_to_float32(dtype: torch.dtype, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    calls = [(torch.randn(n, width, generator=generator) + 1).to(dtype) for n in (1, 700, 3000, 2, 40)]
    moment = SecondMoment(width, first=1000)
    for rows in calls:
        moment.add(rows)
    x = torch.cat(calls).double()
    torch.testing.assert_close(mean([(moment, 2)], len(x)), (2 * x.T @ x / len(x)).float(), rtol=2e-6, atol=2e-6)


def test_layers_that_see_one_tensor_share_its_sum_until_it_changes() -> None:
    sums, x = SharedMoments(), torch.arange(12.0).view(4, 3)

    def gram(rows: Tensor) -> Tensor:
        return rows.T @ rows

    first = x.clone()
    for layer in ("query", "key"):
        sums.add(layer, x, LAST_CHANNEL, x.view(-1, 3))
    sums.add("query", x.view(4, 3), LAST_CHANNEL, x)  # the same memory
    x.mul_(2)  # in place, before anything is multiplied
    sums.add("key", x, LAST_CHANNEL, x)
    sums.flush()
    torch.testing.assert_close(sums.mean("query", 1), 2 * gram(first))
    torch.testing.assert_close(sums.mean("key", 1), gram(first) + gram(2 * first))


def test_layers_in_ever_other_company_keep_few_sums() -> None:
    sums, expected = SharedMoments(), torch.zeros(3, 3)
    for index in range(10):
        x = torch.full((2, 3), float(index))
        for layer in ("a", f"b{index}"):
            sums.add(layer, x, LAST_CHANNEL, x)
        expected += x.T @ x
    sums.flush()
    torch.testing.assert_close(sums.mean("a", 1), expected)
    assert sum("a" in layers for layers in sums._sums) <= MOST_SETS + 1


def test_the_rows_of_a_reservoir_are_those_of_the_smallest_keys_in_order() -> None:
    reservoir, keys = Reservoir(30, torch.Generator().manual_seed(0)), torch.Generator().manual_seed(0)
    rows, drawn = torch.arange(200.0)[:, None], []
    for count in (20, 0, 25, 3, 100, 52):
        begin = reservoir.seen
        reservoir.add(rows[begin : begin + count])
        drawn.append(torch.rand(count, generator=keys))
        known = torch.cat(drawn)
        smallest = known.topk(min(30, len(known)), largest=False).indices.sort().values
        assert reservoir.rows is not None
        assert torch.equal(reservoir.rows[:, 0], smallest.float())
