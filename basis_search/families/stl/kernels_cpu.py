"""Compiled CPU kernels, over blocks of tile rows: encode, z_l = E x; r matmuls, s_l = z_l w_l; decode, y = D s + b.

With AVX2 and AVX-512 the compiled module does all three block by block, so that products are decoded while in cache. On
other processors torch's batched matmul on whole panels runs between the module's encode and decode.
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
from basis_search.families.stl.low_rank_part import low_rank_product
from basis_search.families.stl.spec import Spec
from basis_search.layers.layer import LayerLike
from basis_search.schemes.programs.program import Program

try:
    import basis_kernels.stl._cpu as _cpu
except ImportError:
    _cpu = None

SIDES = (1, 2, 3, 4, 8)
"""Supported numbers of inputs and outputs of a tile; it may have 1 to 8 rows."""
MOST_RANK = 128
PANEL_BYTES = 24 << 20
"""Size of encoded inputs and products of one panel, which stay in the last-level cache from encode to decode."""
LEAST_ROWS = 128
"""Fewest tile rows of a panel; matmuls of fewer rows are slow."""
KEPT_BYTES = 64 << 20
"""Largest buffer for panels that a thread keeps between calls."""
PAD = 16
"""Padding after each of the r planes: planes of 2^k values would map to the same few cache sets."""


@dataclass(frozen=True, eq=False)
class Packed:
    """A layer packed for the compiled kernels; inputs, outputs and weights may be bfloat16, arithmetic is float32."""

    weight: Tensor  # [r, K, M], float32; or [r, M / width, K, width], bfloat16 as int16 where the layer's is
    out_features: int
    operator: Any  # basis_kernels.stl._cpu.Operator, with copies of bases or programs and of the bias
    programs: tuple[bool, bool]  # whether encode and decode run as programs
    low_rank: Params  # "up" and "down" of the low-rank part, if any


def refuses(isa: str, spec: Spec, layer: LayerLike) -> str | None:
    """Why the compiled kernel of that instruction set cannot run the layer; None if it can."""
    _, k, m = spec.sides
    if k not in SIDES or m not in SIDES:
        return f"it takes tiles of 1, 2, 3, 4 or 8 inputs and outputs, not {spec.tile}; use the torch kernel"
    if spec.rank > MOST_RANK:
        return f"it takes at most {MOST_RANK} products, not {spec.rank}; use the torch kernel"
    return compiled_refusal(None if _cpu is None else _cpu.supports, isa, layer)


def pack(isa: str, spec: Spec, params: Params) -> Packed:
    """Copies in the order of reading; bases that still equal the spec's run as its programs of additions."""
    assert _cpu is not None
    kept = bases(spec)
    encode = _side(params["encode"], kept.encode, kept.encoding)
    decode = _side(params["decode"], kept.decode, kept.decoding)
    bias = params.get("bias")
    if bias is not None:
        bias = bias.detach().cpu().float().contiguous()
    operator = _cpu.Operator(isa, *spec.sides, spec.rank, *encode, *decode, bias)
    weight = _panels(params["weight"].detach().cpu(), operator.width)
    low_rank = {name: params[name].detach() for name in ("up", "down") if spec.waist}
    return Packed(weight, int(params["out_features"]), operator, (encode[0] is None, decode[0] is None), low_rank)


def _panels(weight: Tensor, width: int) -> Tensor:
    """[r, K, M] -> [r, ceil(M / width), K, width], zeros at the right edge; [r, K, M] in float32 if width is 0."""
    if not width:
        return weight.float().contiguous()
    r, K, M = weight.shape
    padded = F.pad(weight, (0, -M % width)).view(r, K, -1, width).transpose(1, 2).contiguous()
    return padded.view(torch.int16) if padded.dtype == torch.bfloat16 else padded.float()


def _side(matrix: Tensor, exact: Tensor, program: Program | None) -> tuple[Tensor | None, Tensor, Tensor]:
    """One basis in the module's form: a matrix, or the steps [steps, 3] and ends [outputs, 2] of its program."""
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
        return _add_low_rank(packed, rows, y).view(*x.shape[:-1], m)
    K, M = packed.weight.shape[1:]
    total = -(-len(rows) // t)
    height = panel_rows(total, r, K, M)
    for first in range(0, total, height):
        count = min(height, total - first)
        z, s = _workspace.planes("encoded", r, count, K), _workspace.planes("products", r, count, M)
        packed.operator.encode(source, z, first, threads)
        torch.bmm(z, packed.weight, out=s)
        packed.operator.decode(s, target, first, threads)
    return _add_low_rank(packed, rows, y).view(*x.shape[:-1], m)


def _add_low_rank(packed: Packed, rows: Tensor, y: Tensor) -> Tensor:
    """Add the low-rank part U (V x) to y in place."""
    return y.add_(low_rank_product(packed.low_rank, rows)) if packed.low_rank else y


def panel_rows(total: int, r: int, K: int, M: int) -> int:
    """Tile rows per panel: at most PANEL_BYTES, at least LEAST_ROWS, all panels of about equal height."""
    most = max(LEAST_ROWS, PANEL_BYTES // (4 * r * (K + M)))
    return -(-total // -(-total // most)) if total else 1


class _Workspace(threading.local):
    """Buffers that a thread keeps between calls: fresh pages would cost as much as the encode that fills them."""

    def __init__(self) -> None:
        self.buffers: dict[str, Tensor] = {}

    def planes(self, name: str, r: int, count: int, columns: int) -> Tensor:
        """An uninitialised [r, count, columns] with padded planes."""
        size = r * (count * columns + PAD)
        buffer = self.buffers.get(name)
        if buffer is None or len(buffer) < size:
            self.buffers.pop(name, None)
            buffer = torch.empty(size)
            if 4 * size <= KEPT_BYTES:
                self.buffers[name] = buffer
        return buffer.as_strided((r, count, columns), (count * columns + PAD, columns, 1))


_workspace = _Workspace()
