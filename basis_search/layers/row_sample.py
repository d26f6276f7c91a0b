"""Sample the input rows of a layer to fit on and to evaluate on: whole examples are held out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from basis_search.errors import BadInput
from basis_search.layers.batches import TokenMask

HELD_OUT_FRACTION = 0.25
HELD_OUT_EVERY = round(1 / HELD_OUT_FRACTION)  # one batch in so many is held out

MOST_WAITING = 256
"""Rows of one sample that wait on a GPU, so that it need not be waited for at every call."""


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


_Indices = NDArray[np.int64]


class Reservoir:
    """A uniform sample, on the CPU, of at most `limit` rows of a stream of unknown length.

    Each row draws a key, and the rows of the smallest keys stay, in the stream's order. Keys are drawn on the CPU, so
    that of rows on a GPU only those that stay are copied, a few at a time.
    """

    def __init__(self, limit: int, generator: torch.Generator):
        self.limit, self.generator, self.seen = limit, generator, 0
        self._keys = np.empty(0, np.float32)  # of the stored rows
        self._order = np.empty(0, np.int64)  # in which they came
        self._largest = 0.0  # key
        self._stored: Tensor | None = None
        self._waiting: list[tuple[Tensor, Tensor]] = []  # places and rows on another device
        self._rows_waiting = 0

    @property
    def rows(self) -> Tensor | None:
        """[at most limit, width], or None before the first row."""
        self._store_waiting()
        return None if self._stored is None else self._stored[torch.from_numpy(self._order.argsort())]

    def add(self, rows: Tensor) -> None:
        """Takes rows [n, width]; they may change afterwards."""
        count = len(rows)
        if count == 0:
            return
        keys = torch.rand(count, generator=self.generator).numpy()
        full = len(self._keys) == self.limit
        new = np.flatnonzero(keys < self._largest) if full else np.arange(count)
        new, where = self._places(new, keys[new])
        self._keys[where], self._order[where] = keys[new], self.seen + new
        self.seen += count
        if len(new) == 0:
            return
        if len(self._keys) == self.limit:
            self._largest = float(self._keys.max())
        places, rows = torch.from_numpy(where), rows.detach()
        if len(new) < count:
            rows = rows.index_select(0, torch.from_numpy(new).to(rows.device, non_blocking=True))
        if rows.device.type == "cpu":
            self._store(places, rows)
        elif self._rows_waiting + len(new) <= MOST_WAITING:
            self._waiting.append((places, rows if len(new) < count else rows.clone()))
            self._rows_waiting += len(new)
        else:
            self._store_waiting()
            self._store(places, rows.cpu())

    def _places(self, new: _Indices, keys: NDArray[np.float32]) -> tuple[_Indices, _Indices]:
        """Which of the new rows enter the sample, and the places they take: free ones and those of rows that leave."""
        before = len(self._keys)
        free = min(self.limit - before, len(new))
        leave = len(new) - free
        leaving = np.argpartition(np.concatenate([self._keys, keys]), -leave)[-leave:] if leave else new[:0]
        stays = np.ones(len(new), bool)
        stays[leaving[leaving >= before] - before] = False
        if free:
            self._keys = np.concatenate([self._keys, np.zeros(free, np.float32)])
            self._order = np.concatenate([self._order, np.zeros(free, np.int64)])
        return new[stays], np.concatenate([leaving[leaving < before], np.arange(before, before + free)])

    def _store(self, places: Tensor, rows: Tensor) -> None:
        room = 0 if self._stored is None else len(self._stored)
        dtype = rows.dtype if self._stored is None else torch.promote_types(rows.dtype, self._stored.dtype)
        if self._stored is None or len(self._keys) > room or dtype != self._stored.dtype:
            size = room if len(self._keys) <= room else min(self.limit, max(len(self._keys), 2 * room))
            larger = torch.empty(size, rows.shape[1], dtype=dtype)
            if self._stored is not None:
                larger[:room] = self._stored
            self._stored = larger
        first, count = int(places[0]), len(places)
        if bool((places.diff() == 1).all()):  # free places: several times faster
            self._stored[first : first + count] = rows
        else:
            self._stored[places] = rows.to(dtype)

    def _store_waiting(self) -> None:
        if not self._waiting:
            return
        rows = torch.cat([rows for _, rows in self._waiting]).cpu()  # in one copy
        begin = 0
        for places, _ in self._waiting:  # in order: a place may be taken twice
            self._store(places, rows[begin : begin + len(places)])
            begin += len(places)
        self._waiting, self._rows_waiting = [], 0


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

    def add(self, x: Tensor, mask: TokenMask | None = None) -> Tensor:
        """Takes the inputs [examples, ..., in] or [in] of one call; returns the rows [n, in] that a fit may see.

        Rows of padding are left out of the samples and of what is returned where the mask has the inputs' shape.
        """
        if x.numel() == 0:
            return x.reshape(0, x.shape[-1])
        if self._begins:
            self._batch, self._begins = self._batch + 1, False
        masked = None if mask is None else mask.by_example(x)
        if masked is not None:
            examples = masked
        else:
            examples = x.reshape(1, -1, x.shape[-1]) if x.ndim == 1 else x.reshape(len(x), -1, x.shape[-1])
        self.call_rows = max(self.call_rows, examples.shape[:-1].numel())
        if len(examples) > 1:
            fit, held_out = hold_out(len(examples))
        else:
            fit, held_out = slice(0, 1), slice(0, 0)
            if self._batch % HELD_OUT_EVERY == 1:
                fit, held_out = held_out, fit
        if not mask or masked is None:
            rows, others = (examples[part].reshape(-1, x.shape[-1]) for part in (fit, held_out))
        else:
            rows, others = (mask.rows(masked, part) for part in (fit, held_out))
        self.fit.add(rows)
        self.held_out.add(others)
        return rows

    def tensors(self, layer: str) -> tuple[Tensor, Tensor]:
        """The rows to fit on and the held-out rows.

        Raises:
            BadInput: one of the two is empty.
        """
        rows, held_out = self.fit.rows, self.held_out.rows
        if rows is None or held_out is None:
            raise BadInput(f"layer {layer!r} saw too few examples to hold any out; give at least 2 examples")
        return rows, held_out
