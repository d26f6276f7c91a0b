"""The first run of an operator of torch: errors of the operator refuse it, errors of the device do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from basis_search.families.dense import Spec, fit
from basis_search.families.dense.reference import reference
from basis_search.families.protocol import Kernel, accept, keep
from basis_search.families.protocol.gpu_operator import DEVICE_ERROR, difference, small_layer

pytestmark = pytest.mark.fast


def found(run: Any) -> str | None:
    kernel = Kernel("operator", run, keep, accept)
    return difference(kernel, Spec(), small_layer(torch.float32, torch.device("cpu")), fit, reference)


def raising(problem: Exception) -> Any:
    def run(spec: Any, packed: Any, x: Tensor) -> Tensor:
        raise problem

    return run


def test_an_operator_that_fails_or_is_wrong_is_refused() -> None:
    assert found(lambda spec, packed, x: reference(spec, packed, x).float()) is None
    wrong = found(lambda spec, packed, x: 2 * reference(spec, packed, x).float())
    assert wrong is not None
    assert wrong.startswith("is off by 1.0e+00")
    assert found(raising(RuntimeError("no kernel image"))) == "does not run here (no kernel image)"


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, DEVICE_ERROR])
def test_errors_of_the_device_are_no_property_of_the_operator(kind: type[Exception]) -> None:
    with pytest.raises(kind):
        found(raising(kind("CUDA error: an illegal memory access was encountered")))
