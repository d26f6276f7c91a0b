"""Batches of a model: run it on one, count its examples, and tell real tokens from padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from basis_search.errors import BadInput, near_miss

ATTENTION_MASK = "attention_mask"
Mask = str | bool | Callable[[Any], Tensor | None] | None


def forward(model: nn.Module, batch: Any) -> Any:
    """One forward pass; a tensor is the only argument, a tuple or list the arguments, a dict keyword arguments."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple | list):
        return model(*batch)
    return model(batch)


def examples(batch: Any, default: int = 1) -> int:
    """Dimension 0 of the first tensor."""
    return next((len(t) for t in tensors(batch) if t.ndim), default)


def tensors(found: Any) -> Iterator[Tensor]:
    """All tensors in nested dicts, tuples and lists, in order."""
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, Mapping | tuple | list):
        for part in found.values() if isinstance(found, Mapping) else found:
            yield from tensors(part)


class TokenMask:
    """Which positions of a batch are real tokens; the others are padding.

    Args:
        real: [examples, length], nonzero at real tokens. It is read once, so that a GPU is waited for once a batch.
    """

    def __init__(self, real: Tensor):
        self.shape = tuple(real.shape)
        self._real = real.detach().cpu().bool()
        self._padded = not bool(self._real.all())
        self._places: dict[tuple[Any, ...], Tensor] = {}

    def by_example(self, x: Tensor) -> Tensor | None:
        """The tensor [examples, length, ..., width], or [examples * length, width], as [examples, length, n, width].

        None of another shape.
        """
        if (x.ndim > 2 and x.shape[:2] == self.shape) or (x.ndim == 2 and len(x) == self._real.numel()):
            return x.reshape(*self.shape, -1, x.shape[-1])
        return None

    def rows(self, x: Tensor, part: slice = slice(None)) -> Tensor:
        """The rows [n, width] of real tokens of part of the examples of x [examples, length, n, width]."""
        chosen = x[part].flatten(0, 1)
        if self._padded:
            chosen = chosen.index_select(0, self._at(part, x.device))
        return chosen.reshape(-1, x.shape[-1])

    def cover(self, x: Tensor) -> Tensor:
        """Zeros at padded positions of x [examples, length, ...]; a tensor of another shape as it is."""
        if not self._padded or x.ndim < 2 or x.shape[:2] != self.shape:
            return x
        real = self._real.to(x.device).reshape(*self.shape, *[1] * (x.ndim - 2))
        return torch.where(real, x, torch.zeros((), dtype=x.dtype, device=x.device))

    def _at(self, part: slice, device: torch.device) -> Tensor:
        key = (part.start, part.stop, device)
        if key not in self._places:
            self._places[key] = self._real[part].flatten().nonzero()[:, 0].to(device, non_blocking=True)
        return self._places[key]


def token_mask(batch: Any, mask: Mask, default: bool) -> TokenMask | None:
    """The mask of a batch.

    Args:
        batch: of the model.
        mask: a key of the batch, a function of it, False for none, or None for the default.
        default: whether the default heeds "attention_mask" in a dict.

    Raises:
        BadInput: there is no such key, or what is found there is no mask.
    """
    if mask is False or (mask is None and not default):
        return None
    if mask is None:
        found = batch.get(ATTENTION_MASK) if isinstance(batch, Mapping) else None
        return TokenMask(found) if isinstance(found, Tensor) and found.ndim == 2 else None
    if isinstance(mask, str):
        keys = list(map(str, batch)) if isinstance(batch, Mapping) else []
        if mask not in keys:
            kind = "" if isinstance(batch, Mapping) else f": it is a {type(batch).__name__}, not a dict"
            raise BadInput(
                f"a batch has no {mask!r} to tell padding from tokens{kind}{near_miss(mask, keys) if keys else ''}; "
                "give mask= a key of every batch, or a function of the batch, or False to count all rows"
            )
        found = batch[mask]
    elif callable(mask):
        found = mask(batch)
        if found is None:
            return None
    else:
        raise BadInput(f"mask is {mask!r}, but a key of the batches, a function of a batch, False or None is needed")
    if not isinstance(found, Tensor) or found.ndim != 2:
        what = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise BadInput(
            f"the mask is {what}, but a tensor [examples, length] is needed, nonzero at real tokens; give mask= a "
            "function that returns one, or False to count all rows"
        )
    return TokenMask(found)
