"""Hooks that record the inputs of a model's layers and the gradients at their outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from basis_search.layers.batches import TokenMask
from basis_search.layers.dense_modules import Dense, View
from basis_search.layers.row_sample import RowSample
from basis_search.layers.second_moment import SharedMoments


class GradientSums(Protocol):
    """Sums over the gradients at layers' outputs."""

    def add(self, layer: str, tensor: Tensor, view: View, rows: Tensor) -> None: ...


@dataclass
class Pass:
    """What the layers' hooks record at present.

    Attributes:
        inputs: whether calls and their inputs count; not in a backward pass, where checkpointing runs layers again.
        gradients: where gradients are added, or None.
        mask: of the batch.
    """

    inputs: bool = False
    gradients: GradientSums | None = None
    mask: TokenMask | None = None


def graph_begins(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """A forward hook: the module's output, with a gradient although no parameter has one."""
    if output.requires_grad or not torch.is_grad_enabled():
        return output
    return output + torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)


class Recorder:
    """Forward and gradient hooks of one layer."""

    def __init__(self, name: str, linear: Dense, rows: RowSample, inputs: SharedMoments, now: Pass):
        self.name, self.view, self.rows = name, linear.view, rows
        self.inputs, self.now = inputs, now
        self.gradient_rows: dict[int, int] = {}
        self.without_gradient = False  # whether a call took part in no graph
        self.calls = self.calls_of_this_forward = 0

    def start_forward(self) -> None:
        self.calls = max(self.calls, self.calls_of_this_forward)
        self.calls_of_this_forward = 0
        self.rows.start_batch()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Tensor:
        now = self.now
        if now.inputs:
            given: Tensor = args[0] if args else next(iter(kwargs.values()))
            self.calls_of_this_forward += 1
            with torch.no_grad():
                rows = self.rows.add(self.view.rows(given.detach()), now.mask)
                self.inputs.add(self.name, given, self.view, rows)
        if now.gradients is not None and not torch.is_grad_enabled():
            self.without_gradient = True
        elif now.gradients is not None:
            output = graph_begins(module, args, output)
            output.register_hook(partial(self._gradient, now.gradients, now.mask))  # type: ignore[no-untyped-call]
        return output

    def rows_with_gradient(self, sums: GradientSums) -> int:
        """Rows whose gradients were added to those sums."""
        return self.gradient_rows.get(id(sums), 0)

    def _gradient(self, sums: GradientSums, mask: TokenMask | None, gradient: Tensor) -> None:
        with torch.no_grad():
            whole = self.view.last(gradient.detach())
            by_example = None if mask is None else mask.by_example(whole)
            rows = mask.rows(by_example) if mask and by_example is not None else whole.reshape(-1, whole.shape[-1])
            self.gradient_rows[id(sums)] = self.rows_with_gradient(sums) + len(rows)
            sums.add(self.name, gradient, self.view, rows)
