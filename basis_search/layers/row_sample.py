"""Sample the input rows of a layer to fit on and to evaluate on: whole examples are held out."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from basis_search.errors import BadInput

HELD_OUT_FRACTION = 0.25
HELD_OUT_EVERY = round(1 / HELD_OUT_FRACTION)  # one batch in so many is held out


def hold_out(examples: int, seed: int | None = None) -> tuple[Any, Any]:
    """Which of so many examples to fit on, and which are held out: a quarter, and at least one.

    Returns:
        Two indices into a list or a tensor: slices, the last examples being held out, or with a `seed` random ones,
        as tensors.
    """
    held = max(1, int(examples * HELD_OUT_FRACTION))
    if seed is None:
        return slice(0, examples - held), slice(examples - held, examples)
    order = torch.randperm(examples, generator=torch.Generator().manual_seed(seed))
    return order[held:], order[:held]


class Reservoir:
    """A uniform sample of at most `limit` rows of a stream of unknown length."""

    def __init__(self, limit: int, generator: torch.Generator):
        self.limit, self.generator, self.seen = limit, generator, 0
        self.rows: Tensor | None = None
        self._keys: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        if len(rows) == 0:
            return
        self.seen += len(rows)
        keys = torch.rand(len(rows), generator=self.generator)
        rows = rows.detach().cpu()
        if self.rows is not None and self._keys is not None:
            rows, keys = torch.cat([self.rows, rows]), torch.cat([self._keys, keys])
        if len(rows) > self.limit:
            smallest = keys.topk(self.limit, largest=False).indices.sort().values
            rows, keys = rows[smallest], keys[smallest]
        self.rows, self._keys = rows.clone(), keys


class RowSample:
    """Samples of the rows that a layer sees in a model's forward passes; no example has rows in both samples.

    Of each batch the last quarter of the examples (dimension 0) is held out: rows of one example are alike. Of batches
    with one example, every fourth is held out, the second first.

    Args:
        samples: at most this many rows to fit on, and a quarter as many held out.
        seed: of the samples.

    Attributes:
        fit, held_out: the two samples.
        call_rows: rows of the largest call.
    """

    def __init__(self, samples: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.fit = Reservoir(samples, generator)
        self.held_out = Reservoir(max(1, math.ceil(samples * HELD_OUT_FRACTION)), generator)
        self.call_rows = 0
        self._batch, self._begins = -1, True

    def start_batch(self) -> None:
        """The calls that follow see another batch; all calls of one batch see the same examples."""
        self._begins = True

    def add(self, x: Tensor) -> Tensor:
        """Takes the inputs [examples, ..., in] or [in] of one call; returns the rows [n, in] that a fit may see."""
        if x.numel() == 0:
            return x.reshape(0, x.shape[-1])
        if self._begins:
            self._batch, self._begins = self._batch + 1, False
        examples = x.reshape(1, -1, x.shape[-1]) if x.ndim == 1 else x.reshape(len(x), -1, x.shape[-1])
        self.call_rows = max(self.call_rows, examples.shape[0] * examples.shape[1])
        if len(examples) > 1:
            fit, held_out = hold_out(len(examples))
        else:
            fit, held_out = slice(0, 1), slice(0, 0)
            if self._batch % HELD_OUT_EVERY == 1:
                fit, held_out = held_out, fit
        rows = examples[fit].reshape(-1, x.shape[-1])
        self.fit.add(rows)
        self.held_out.add(examples[held_out].reshape(-1, x.shape[-1]))
        return rows

    def tensors(self, layer: str) -> tuple[Tensor, Tensor]:
        """The rows to fit on and the held-out rows.

        Raises:
            BadInput: one of the two is empty.
        """
        if self.fit.rows is None or self.held_out.rows is None:
            raise BadInput(f"layer {layer!r} saw too few examples to hold any out; give at least 2 examples")
        return self.fit.rows, self.held_out.rows
