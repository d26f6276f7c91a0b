"""Modules that are dense linear layers y = x W^T + b.

nn.Linear; GPT-2's Conv1D, which stores W transposed; convolutions of kernel size 1, whose channels are features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class View:
    """The layout of rows in a layer's input and output.

    Attributes:
        channel_dim: the dimension of the features, counted from the end.
        stride: step between the positions taken along each dimension after the features; empty takes all.
    """

    channel_dim: int = -1
    stride: tuple[int, ...] = ()

    def rows(self, x: Tensor) -> Tensor:
        """An input with its features last, [..., in]."""
        if self.stride:
            positions: Any = (..., *(slice(None, None, step) for step in self.stride))
            x = x[positions]
        return self.last(x)

    def last(self, y: Tensor) -> Tensor:
        """An output with its features last, [..., out]."""
        return y if self.channel_dim == -1 else y.movedim(self.channel_dim, -1)

    def restore(self, y: Tensor) -> Tensor:
        """An output [..., out] in the layer's own layout."""
        return y if self.channel_dim == -1 else y.movedim(-1, self.channel_dim)


LAST_CHANNEL = View()


@dataclass(frozen=True)
class Dense:
    """A module read as a dense layer: weight [out, in], bias [out] or None, and the layout of its rows."""

    module: nn.Module
    weight: Tensor
    bias: Tensor | None
    view: View = LAST_CHANNEL

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]


Group = tuple[list[str], list[Dense]]
"""Names and modules that are one layer: they share weight and bias."""


def dense(module: nn.Module) -> Dense | None:
    """The module as a dense layer that shares its tensors; None if it is not one."""
    if isinstance(module, nn.Linear):
        return Dense(module, module.weight, module.bias)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        axes = len(module.kernel_size)
        padded = module.padding not in ("same", "valid") and any(module.padding)
        if (
            set(module.kernel_size) != {1}
            or module.groups != 1
            or padded
            or isinstance(module.weight, nn.UninitializedParameter)
        ):
            return None
        stride = () if set(module.stride) == {1} else tuple(module.stride)
        return Dense(module, module.weight.flatten(1), module.bias, View(-1 - axes, stride))
    if any(c.__name__ == "Conv1D" and c.__module__ == "transformers.pytorch_utils" for c in type(module).__mro__):
        weight, bias = module.weight, module.bias
        assert isinstance(weight, Tensor)
        return Dense(module, weight.T, bias if isinstance(bias, Tensor) else None)
    return None


def dense_layers(model: nn.Module) -> Iterator[tuple[str, Dense]]:
    """Every dense layer of a model, once under each of its names."""
    for name, module in model.named_modules(remove_duplicate=False):
        found = dense(module)
        if found is not None:
            yield name, found


def tied_to_others(model: nn.Module) -> dict[int, str]:
    """Parameters of modules that are not dense layers (an embedding): id -> name."""
    return {
        id(parameter): f"{name}.{leaf}" if name else leaf
        for name, module in model.named_modules()
        if dense(module) is None
        for leaf, parameter in module.named_parameters(recurse=False)
    }
