"""Sizes among the parameters: stored as tensors without dimensions, Python numbers in a call.

Reading a tensor on a GPU waits for the GPU and is forbidden while a CUDA graph is captured, so `Kernel.run` reads none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

OUT_FEATURES = "out_features"
"""The one size that families store, where the operator pads its outputs."""


def with_size(params: Mapping[str, Tensor], out_features: int | None = None) -> dict[str, Any]:
    """The parameters with "out_features", if it is among them, as a Python number.

    Args:
        params: in their family's layout.
        out_features: its value where it is known; None reads the tensor, which on a GPU waits for it.
    """
    if OUT_FEATURES not in params:
        return dict(params)
    return {**params, OUT_FEATURES: int(params[OUT_FEATURES]) if out_features is None else out_features}
