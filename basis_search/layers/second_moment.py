"""Second moments E[x x^T] of streams of rows, summed where the rows lie; layers that see one tensor share one sum."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from basis_search.layers.dense_modules import View

GATHERED = 2048
"""Rows of small calls that are multiplied together."""
MULTIPLIED = 4096
"""At most so many rows are summed in float32 before their sum is added to the float64 total."""
LEAST_BLOCK = 64
BLOCKS = 12
MOST_SETS = 3
"""A layer whose input is shared with ever other layers keeps sums with so many sets of layers, and then one alone."""


class SecondMoment:
    """The sum of x x^T over rows [n, width]: block rows of its upper triangle, float64, on the rows' device.

    Products are float32, and float64 for float64 rows; 16-bit rows are multiplied exactly. The total takes
    about 4.4 bytes per element of the square matrix, and at most `GATHERED` rows wait to be multiplied.

    Args:
        width: of the rows.
        first: so many rows wait before the first product, for which there is no total yet.
        rounded: whether bfloat16 hardware may multiply float32 rows, which rounds them to 8 bits; sums stay float32.
    """

    def __init__(self, width: int, first: int = GATHERED, rounded: bool = False):
        self.width, self._rounded = width, rounded
        self._block = max(LEAST_BLOCK, -(-width // (64 * BLOCKS)) * 64)
        self._limit = max(first, GATHERED)
        self._waiting: list[Tensor] = []
        self._totals: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        """Takes rows that nobody changes afterwards."""
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) > self._limit:
            self._multiply()

    def totals(self) -> list[Tensor]:
        """Block row i is [rows of the block, width - rows before it], float64."""
        self._multiply()
        return self._totals

    def free(self) -> None:
        self._totals, self._waiting = [], []

    def _multiply(self) -> None:
        rows = self._waiting[0] if len(self._waiting) == 1 else torch.cat(self._waiting) if self._waiting else None
        self._waiting, self._limit = [], GATHERED
        if rows is None:
            return
        starts = range(0, self.width, self._block)
        if not self._totals:
            self._totals = [
                torch.zeros(min(self._block, self.width - s), self.width - s, dtype=torch.float64, device=rows.device)
                for s in starts
            ]
        products = torch.empty(0)
        with float32_products(torch.bfloat16 if self._rounded else rows.dtype):
            for piece in torch.split(rows, MULTIPLIED):
                halves = piece.dtype in (torch.float16, torch.bfloat16)
                direct = halves and _multiplies_halves_exactly(piece.device, piece.dtype)
                x = piece if direct or piece.dtype == torch.float64 else piece.float()
                for total, s in zip(self._totals, starts, strict=True):
                    left, right = x[:, s : s + self._block].T, x[:, s:]
                    if direct:
                        total += torch.mm(left, right, out_dtype=torch.float32)
                        continue
                    if len(products) == 0:  # one block of memory for all
                        products = x.new_empty(self._block * self.width)
                    product = products[: total.numel()].view(total.shape)
                    total += torch.mm(left, right, out=product)


def mean(parts: Sequence[tuple[SecondMoment, int]], rows: int) -> Tensor:
    """The weighted sum of second moments over the number of rows, [width, width], float32, on the CPU."""
    width, start = parts[0][0].width, 0
    result = torch.empty(width, width)
    weighted = [(part.totals(), times) for part, times in parts]
    for index, first in enumerate(weighted[0][0]):
        block = torch.zeros_like(first)
        for totals, times in weighted:
            block += totals[index].to(block.device) * times
        block = (block / rows).float().cpu()
        end = start + len(block)
        result[start:end, start:] = block
        result[end:, start:end] = result[start:end, end:].T
        corner = result[start:end, start:end]
        corner.copy_(corner.triu() + corner.triu(1).T)
        start = end
    return result


@dataclass
class _Seen:
    """A tensor that layers saw in succession, and a copy of its rows."""

    tensor: Tensor
    version: int | None
    view: View
    rows: Tensor
    layers: list[str] = field(default_factory=list)

    def is_(self, tensor: Tensor, view: View, rows: Tensor) -> bool:
        return (
            self.version is not None
            and self.version == _version(tensor)
            and self.view == view
            and self.rows.shape == rows.shape
            and (self.tensor is tensor or _same_memory(self.tensor, tensor))
        )


class SharedMoments:
    """Second moments by layer; what several layers see in succession is multiplied once (query, key and value).

    A copy of the last tensor's rows is kept until another tensor comes: only then is known which layers saw it, and
    the model may change it in place meanwhile.

    Args:
        first: rows of a layer before its first product; `mean` of no more than these needs none.
        rounded: as for `SecondMoment`.
    """

    def __init__(self, first: int = GATHERED, rounded: bool = False):
        self._first, self._rounded = first, rounded
        self._last: _Seen | None = None
        self._sums: dict[tuple[str, ...], SecondMoment] = {}
        self._sets: dict[str, list[tuple[str, ...]]] = {}
        self._means: dict[tuple[tuple[tuple[str, ...], int], ...], Tensor] = {}

    def add(self, layer: str, tensor: Tensor, view: View, rows: Tensor, copy: bool = True) -> None:
        """The layer saw the tensor, of which it counts the rows [n, width]; no copy is needed of what stays."""
        if self._last is None or not self._last.is_(tensor, view, rows):
            self.flush()
            rows = rows.clone(memory_format=torch.contiguous_format) if copy else rows
            self._last = _Seen(tensor, _version(tensor), view, rows)
        self._last.layers.append(layer)

    def flush(self) -> None:
        """What comes next is another tensor."""
        last, self._last = self._last, None
        if last is None or len(last.rows) == 0:
            return
        together = tuple(sorted(last.layers))
        full = any(len(self._sets.get(layer, ())) >= MOST_SETS for layer in together)
        for layers in [(layer,) for layer in together] if full and together not in self._sums else [together]:
            if layers not in self._sums:
                self._sums[layers] = SecondMoment(last.rows.shape[1], self._first, self._rounded)
                for layer in set(layers):
                    self._sets.setdefault(layer, []).append(layers)
            self._sums[layers].add(last.rows)

    def __contains__(self, layer: str) -> bool:
        """Whether the layer saw any row."""
        return layer in self._sets

    def mean(self, layer: str, rows: int) -> Tensor:
        """Over that many rows, [width, width], float32, on the CPU; layers of one sum get one tensor.

        Sums of layers that always came together are freed.
        """
        sets = self._sets[layer]
        times = tuple((layers, Counter(layers)[layer]) for layers in sets)
        key = (*times, ((), rows))
        if key not in self._means:
            self._means[key] = mean([(self._sums[layers], count) for layers, count in times], rows)
            if all(self._sets[other] == sets for other in sets[0]):
                for layers in sets:
                    self._sums[layers].free()
        return self._means[key]


def _version(tensor: Tensor) -> int | None:
    """Of the tensor's content; None where torch does not count it."""
    return None if tensor.is_inference() else tensor._version


def _same_memory(a: Tensor, b: Tensor) -> bool:
    """Both alive. Tensors of other classes have no memory of their own to compare."""
    return (
        type(a) is type(b) is Tensor
        and (a.device, a.dtype, a.shape, a.stride()) == (b.device, b.dtype, b.shape, b.stride())
        and a.data_ptr() == b.data_ptr()
    )


@functools.cache
def _multiplies_halves_exactly(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch multiplies 16-bit matrices to a float32 one there, as it does on CUDA since 2.8."""
    if device.type != "cuda":
        return False
    try:
        ones = torch.ones(8, 8, dtype=dtype, device=device)
        torch.mm(ones, ones, out_dtype=torch.float32)
    except (TypeError, NotImplementedError, RuntimeError):  # a keyword, a kernel or a GPU that does not do it
        return False
    return True


@contextlib.contextmanager
def float32_products(dtype: torch.dtype) -> Iterator[None]:
    """float32 products without TF32 or bfloat16, which the user may have allowed for the model.

    Of values that came from bfloat16, or may be rounded to it, products are those of bfloat16 hardware, and faster.
    """
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # set by the newer names, which the older function refuses to read
        matmul = torch.backends.cuda.matmul
        before, matmul.fp32_precision = matmul.fp32_precision, "ieee"
        try:
            yield
        finally:
            matmul.fp32_precision = before
        return
    torch.set_float32_matmul_precision("medium" if dtype == torch.bfloat16 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
