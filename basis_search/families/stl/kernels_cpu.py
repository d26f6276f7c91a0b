"""The compiled path, over blocks of tile rows: encode, z_l = E x; r matmuls, s_l = z_l w_l; decode, y = D s + b.

With AVX2 and AVX-512 the module does all three, block by block, so that products are decoded before they leave the
cache; torch's batched matmul on whole panels, between encode and decode, is what is left for other processors.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from basis_search.families.protocol import Params, compiled_refusal
from basis_search.families.stl.bases import bases
from basis_search.families.stl.low_rank_part import through
from basis_search.families.stl.spec import Spec
from basis_search.layers.layer import LayerLike
from basis_search.schemes.programs.program import Program

try:
    import basis_kernels.stl._cpu as _cpu
except ImportError:
    _cpu = None

SIDES = (1, 2, 3, 4, 8)
"""Inputs and outputs of a tile that the module has shuffles for; it has from 1 to 8 rows."""
MOST_RANK = 128
PANEL_BYTES = 24 << 20
"""Encoded inputs and products of one panel: what should stay in the last cache between encode, matmul and decode."""
LEAST_ROWS = 128
"""Fewest tile rows of a panel; thinner matmuls run below their speed."""
KEPT_BYTES = 64 << 20
"""Largest of the two rooms for panels that a thread keeps between calls."""
PAD = 16
"""Values after each of the r planes: without them planes of 2^k values fall into the same few cache lines."""


@dataclass(frozen=True, eq=False)
class Packed:
    """A layer for the compiled kernels; arithmetic is float32 whatever the storage of inputs, outputs and weights."""

    weight: Tensor  # [r, K, M], float32; or [r, M / width, K, width], bfloat16 as int16 where the layer's is
    out_features: int
    operator: Any  # the module's own copy of bases or programs, and of the bias
    programs: tuple[bool, bool]  # whether encode and decode run as programs
    waist: Params  # "up" and "down" of the low-rank part, where there is one


def refuses(isa: str, spec: Spec, layer: LayerLike) -> str | None:
    """None where the compiled kernel of that instruction set can run the layer."""
    _, k, m = spec.sides
    if k not in SIDES or m not in SIDES:
        return f"it takes tiles of 1, 2, 3, 4 or 8 inputs and outputs, not {spec.tile}; use the torch kernel"
    if spec.rank > MOST_RANK:
        return f"it takes at most {MOST_RANK} products, not {spec.rank}; use the torch kernel"
    return compiled_refusal(None if _cpu is None else _cpu.supports, isa, layer)


def pack(isa: str, spec: Spec, params: Params) -> Packed:
    """Copies in reading order; an exact scheme whose bases are still its own runs by its programs."""
    assert _cpu is not None
    kept = bases(spec)
    encode = _side(params["encode"], kept.encode, kept.encoding)
    decode = _side(params["decode"], kept.decode, kept.decoding)
    bias = params.get("bias")
    if bias is not None:
        bias = bias.detach().cpu().float().contiguous()
    operator = _cpu.Operator(isa, *spec.sides, spec.rank, *encode, *decode, bias)
    weight = _panels(params["weight"].detach().cpu(), operator.width)
    waist = {name: params[name].detach() for name in ("up", "down") if spec.waist}
    return Packed(weight, int(params["out_features"]), operator, (encode[0] is None, decode[0] is None), waist)


def _panels(weight: Tensor, width: int) -> Tensor:
    """[r, K, M] -> [r, ceil(M / width), K, width], zeros at the right edge; unchanged but float32 where width is 0."""
    if not width:
        return weight.float().contiguous()
    r, K, M = weight.shape
    padded = F.pad(weight, (0, -M % width)).view(r, K, -1, width).transpose(1, 2).contiguous()
    return padded.view(torch.int16) if padded.dtype == torch.bfloat16 else padded.float()


def _side(matrix: Tensor, exact: Tensor, program: Program | None) -> tuple[Tensor | None, Tensor, Tensor]:
    """One basis as the module takes it: a matrix, or the steps [steps, 3] and ends [outputs, 2] of its program."""
    matrix = matrix.detach().cpu().float().contiguous()
    if program is None or not torch.equal(matrix.double(), exact):
        return matrix, torch.empty(0, 3, dtype=torch.int32), torch.empty(0, 2, dtype=torch.int32)
    steps, ends = signed_steps(program)
    return None, torch.tensor(steps, dtype=torch.int32).reshape(-1, 3), torch.tensor(ends, dtype=torch.int32)


def signed_steps(program: Program) -> tuple[list[tuple[int, int, int]], list[tuple[int, int]]]:
    """Steps (left, right, sign), value = left + sign * right, and ends (value, sign) of a program of additions.

    A sum of two negated values is computed without its sign, which later steps or ends take over.

    Raises:
        ValueError: the program multiplies by something other than 1 and -1.
    """
    signs = [1] * program.inputs
    steps: list[tuple[int, int, int]] = []
    for a, alpha, b, beta in program.steps:
        left, right = alpha * signs[a], beta * signs[b]
        if abs(left) != 1 or abs(right) != 1:
            raise ValueError("the program is not of additions and subtractions alone")
        # left a + right b is computed as a + b, a - b, b - a or -(a + b)
        steps.append((b, a, -1) if (left, right) == (-1, 1) else (a, b, 1 if left == right else -1))
        signs.append(-1 if (left, right) == (-1, -1) else 1)
    ends = []
    for value, coefficient in program.outputs:
        sign = coefficient * signs[value] if value >= 0 else 1
        if abs(sign) != 1:
            raise ValueError("the program is not of additions and subtractions alone")
        ends.append((value, int(sign)))
    return steps, ends


def run(spec: Spec, packed: Packed, x: Tensor) -> Tensor:
    """x [..., in] -> y [..., out] in x's dtype."""
    t, r, m = spec.sides[0], spec.rank, packed.out_features
    rows = x.detach().reshape(-1, x.shape[-1])
    if rows.stride(1) != 1 or rows.data_ptr() % rows.element_size():
        rows = rows.contiguous()
    y = torch.empty(len(rows), m, dtype=x.dtype)
    threads = torch.get_num_threads()
    source, target = (rows, y) if x.dtype == torch.float32 else (rows.view(torch.int16), y.view(torch.int16))
    if packed.operator.width:
        packed.operator.multiply(source, packed.weight, target, threads)
        return _with_waist(packed, rows, y).view(*x.shape[:-1], m)
    K, M = packed.weight.shape[1:]
    total = -(-len(rows) // t)
    height = panel_rows(total, r, K, M)
    for first in range(0, total, height):
        count = min(height, total - first)
        z, s = _workspace.planes("encoded", r, count, K), _workspace.planes("products", r, count, M)
        packed.operator.encode(source, z, first, threads)
        torch.bmm(z, packed.weight, out=s)
        packed.operator.decode(s, target, first, threads)
    return _with_waist(packed, rows, y).view(*x.shape[:-1], m)


def _with_waist(packed: Packed, rows: Tensor, y: Tensor) -> Tensor:
    """y + U (V x), in place."""
    return y.add_(through(packed.waist, rows)) if packed.waist else y


def panel_rows(total: int, r: int, K: int, M: int) -> int:
    """Tile rows of a panel: as many as PANEL_BYTES hold, at least LEAST_ROWS, panels of even height."""
    most = max(LEAST_ROWS, PANEL_BYTES // (4 * r * (K + M)))
    return -(-total // -(-total // most)) if total else 1


class _Workspace(threading.local):
    """Room that a thread keeps from call to call: fresh pages would cost as much as the encode that fills them."""

    def __init__(self) -> None:
        self.room: dict[str, Tensor] = {}

    def planes(self, name: str, r: int, count: int, columns: int) -> Tensor:
        """[r, count, columns], planes padded; what it held is undefined."""
        size = r * (count * columns + PAD)
        room = self.room.get(name)
        if room is None or len(room) < size:
            self.room.pop(name, None)
            room = torch.empty(size)
            if 4 * size <= KEPT_BYTES:
                self.room[name] = room
        return room.as_strided((r, count, columns), (count * columns + PAD, columns, 1))


_workspace = _Workspace()
