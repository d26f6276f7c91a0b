"""torch's linear reads nothing outside the rows of its input, whatever their layout."""

from __future__ import annotations

import math

import pytest
import torch

from basis_search.families.protocol import linear, relative_gap, tolerance

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("outside", [math.nan, math.inf])
def test_values_between_the_rows_do_not_reach_the_output(dtype: torch.dtype, outside: float) -> None:
    """oneDNN's AMX product of bfloat16 multiplies them by zero: widths that fill no tile of 32 then give NaN."""
    draw = torch.Generator().manual_seed(0)
    for width in (1, 5, 31, 32, 33, 35, 37, 64, 70):
        weight = torch.randn(24, width, generator=draw).to(dtype)
        wide = torch.full((33, width + 40), outside, dtype=dtype)
        x = wide[:, :width]
        x.copy_(torch.randn(33, width, generator=draw))
        expected = x.double() @ weight.double().T
        assert relative_gap(linear(x, weight), expected) <= tolerance(dtype, width), width
