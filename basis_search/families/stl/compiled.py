"""The compiled path: encode a panel of tile rows, z_l = E x; r matmuls s_l = z_l w_l; decode the panel, y = D s + b."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from basis_search.families.stl.bases import bases
from basis_search.families.stl.program import Program
from basis_search.families.stl.spec import Spec
from basis_search.family import Params
from basis_search.layer import LayerLike

try:
    import basis_kernels.stl._cpu as _cpu
except ImportError:
    _cpu = None

NOT_INSTALLED = "the compiled CPU kernels are not installed; a C++ compiler at install time builds them"
DTYPES = (torch.float32, torch.bfloat16)
PANEL_BYTES = 24 << 20
"""Encoded inputs and products of one panel: what should stay in the last cache between encode, matmul and decode."""
LEAST_ROWS = 64
"""Fewest tile rows of a panel; thinner matmuls run below their speed."""
PAD = 16
"""Values after each of the r planes: without them planes of 2^k values fall into the same few cache lines."""


@dataclass(frozen=True, eq=False)
class Side:
    """One basis as the module takes it: a matrix, or the steps and ends of its straight-line program."""

    matrix: Tensor | None  # [outputs, inputs], float32
    steps: Tensor  # [steps, 3], int32
    ends: Tensor  # [outputs, 2], int32


@dataclass(frozen=True, eq=False)
class Packed:
    """A layer for the compiled kernels; arithmetic is float32 whatever the storage of inputs and outputs."""

    weight: Tensor  # [r, K, M], float32
    encode: Side
    decode: Side
    bias: Tensor | None  # [out], float32
    out_features: int


def refuses(isa: str, spec: Spec, layer: LayerLike) -> str | None:
    """None where the compiled kernel of that instruction set can run the layer."""
    if _cpu is None:
        return NOT_INSTALLED
    if layer.device.type != "cpu":
        return f"the layer is on {layer.device.type}, and this kernel runs on the CPU; use the torch kernel there"
    if layer.dtype not in DTYPES:
        return f"it takes float32 and bfloat16, not {str(layer.dtype).removeprefix('torch.')}; use the torch kernel"
    if not _cpu.supports(isa):
        return f"this CPU has no {isa}"
    return None


def pack(spec: Spec, params: Params) -> Packed:
    """Float32 copies, contiguous; an exact scheme whose bases are still its own runs by its programs."""
    kept = bases(spec)
    encode, decode = params["encode"].detach().cpu().float(), params["decode"].detach().cpu().float()
    bias = params.get("bias")
    return Packed(
        params["weight"].detach().cpu().float().contiguous(),
        _side(encode, kept.encode, kept.encoding),
        _side(decode, kept.decode, kept.decoding),
        None if bias is None else bias.detach().cpu().float().contiguous(),
        int(params["out_features"]),
    )


def _side(matrix: Tensor, exact: Tensor, program: Program | None) -> Side:
    none = torch.empty(0, 3, dtype=torch.int32)
    if program is None or not torch.equal(matrix.double(), exact):
        return Side(matrix.contiguous(), none, torch.empty(0, 2, dtype=torch.int32))
    steps = torch.tensor(program.steps, dtype=torch.int32) if program.steps else none
    return Side(None, steps, torch.tensor(program.outputs, dtype=torch.int32))


def run(isa: str, spec: Spec, packed: Packed, x: Tensor) -> Tensor:
    """x [..., in] -> y [..., out] in x's dtype."""
    t, r, m = spec.tile, spec.rank, packed.out_features
    rows = x.detach().reshape(-1, x.shape[-1])
    if rows.stride(1) != 1 or rows.data_ptr() % rows.element_size():
        rows = rows.contiguous()
    y = torch.empty(len(rows), m, dtype=x.dtype)
    K, M = packed.weight.shape[1:]
    total = -(-len(rows) // t)
    height = panel_rows(total, r, K, M)
    threads = torch.get_num_threads()
    source, target = (rows, y) if x.dtype == torch.float32 else (rows.view(torch.int16), y.view(torch.int16))
    encoded, products = _planes(r, height, K), _planes(r, height, M)
    for first in range(0, total, height):
        count = min(height, total - first)
        z, s = encoded(count), products(count)
        _cpu.encode(isa, t, source, *_as_arguments(packed.encode), z, first, threads)
        torch.bmm(z, packed.weight, out=s)
        _cpu.decode(isa, t, s, *_as_arguments(packed.decode), packed.bias, target, first, threads)
    return y.view(*x.shape[:-1], m)


def panel_rows(total: int, r: int, K: int, M: int) -> int:
    """Tile rows of a panel: as many as PANEL_BYTES hold, at least LEAST_ROWS, panels of even height."""
    most = max(LEAST_ROWS, PANEL_BYTES // (4 * r * (K + M)))
    return -(-total // -(-total // most)) if total else 1


def _planes(r: int, height: int, columns: int) -> Callable[[int], Tensor]:
    """Room for [r, height, columns]; the call gives [r, count, columns] in it, planes padded."""
    room = torch.empty(r * (height * columns + PAD))

    def view(count: int) -> Tensor:
        return room.as_strided((r, count, columns), (count * columns + PAD, columns, 1))

    return view


def _as_arguments(side: Side) -> tuple[Tensor | None, Tensor, Tensor]:
    return side.matrix, side.steps, side.ends
