"""Compiled CPU kernels: factors packed for an instruction set's vectors, the whole chain in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from basis_search.families.kronecker.patterns import KroneckerPattern
from basis_search.families.kronecker.reference import factors_of, out_features_of
from basis_search.families.kronecker.spec import Spec, misfit
from basis_search.families.protocol import COMPILED_DTYPES, Params, compiled_refusal
from basis_search.layers.layer import LayerLike

try:
    import basis_kernels.kronecker._cpu as _cpu
except ImportError:
    _cpu = None


@dataclass(frozen=True, eq=False)
class Packed:
    """A chain packed for one instruction set and layout; factors keep their dtype, arithmetic is float32."""

    chain: Any  # basis_kernels.kronecker._cpu.Chain, which owns the packed factors
    out_features: int


def refuses(isa: str, spec: Spec, layer: LayerLike) -> str | None:
    """Why the compiled kernel of that instruction set cannot run the layer; None if it can."""
    return compiled_refusal(None if _cpu is None else _cpu.supports, isa, layer) or misfit(spec, layer)


def fastest(x: Tensor) -> str | None:
    """The best instruction set of this CPU for a batch like x; None if no compiled kernel takes it."""
    if _cpu is None or x.device.type != "cpu" or x.dtype not in COMPILED_DTYPES:
        return None
    return next(isa for isa in ("avx512", "avx2", "scalar") if _cpu.supports(isa))


def multiply(isa: str, x: Tensor, factors: Sequence[Tensor], last: bool) -> Tensor:
    """Stored factors, leftmost first, times x: [rows, N] -> [rows, M], or with `last` [N, batch] -> [M, batch]."""
    return run_packed(packed_chain(isa, factors, None, KroneckerPattern(*factors[0].shape).rows, last), x, last)


def packed_chain(
    isa: str, factors: Sequence[Tensor], bias: Tensor | None, out_features: int, last: bool = False
) -> Packed:
    """Pack stored factors, leftmost first, for one instruction set and layout."""
    width, vectors, samples = _cpu.geometry(isa)
    ready = [w.detach() if last else merged(w.detach(), width) for w in reversed(factors)]
    weights = [packed_columns(w, samples) if last else packed_factor(w, width, vectors) for w in ready]
    patterns = [KroneckerPattern(*w.shape).storage for w in ready]
    shift = None if bias is None else bias.detach().float().contiguous()
    return Packed(_cpu.Chain(isa, patterns, [_bits(w) for w in weights], shift, last), out_features)


def merged(w: Tensor, width: int) -> Tensor:
    """The factor with m neighbouring small blocks merged into one, with zeros between them, to fill vectors.

    I_a (x) 1_{b x c} (x) I_d is contained in I_{a/m} (x) 1_{mb x mc} (x) I_d; m is the smallest divisor of a with
    m b d >= width.
    """
    a, b, c, d = w.shape
    if b * d >= width or _fits_vector(w, width):
        return w
    m = next((m for m in range(2, a + 1) if a % m == 0 and m * b * d >= width), a)
    block = w.new_zeros(a // m, m, b, m, c, d)
    index = torch.arange(m)
    block[:, index, :, index] = w.reshape(a // m, m, b, c, d).transpose(0, 1)
    return block.reshape(a // m, m * b, m * c, d)


def _fits_vector(w: Tensor, width: int) -> bool:
    """Whether square blocks fit whole in a vector: then its lanes are permuted, and no zeros are multiplied."""
    _, b, c, d = w.shape
    return b == c and b > 1 and b * d <= width


def packed_columns(w: Tensor, samples: int) -> Tensor:
    """w [a, b, c, d] as [a, d, tiles over b, c, samples], flat and zero-padded: batch-size-last."""
    a, b, c, d = w.shape
    tiles = -(-b // samples)
    full = F.pad(w.permute(0, 3, 1, 2), (0, 0, 0, tiles * samples - b))  # [a, d, tiles.samples, c]
    return full.reshape(a, d, tiles, samples, c).transpose(3, 4).reshape(-1).contiguous()


def packed_factor(w: Tensor, width: int, vectors: int) -> Tensor:
    """w [a, b, c, d] as [a, blocks over d, tiles, c, vectors, width], flat and zero-padded: batch-size-first."""
    a, b, c, d = w.shape
    if _fits_vector(w, width):
        together = width // (b * d)  # blocks in a vector, whose lanes are (i, j, l): [vectors over a, c, width]
        groups = -(-a // together)
        full = F.pad(w, (0, 0, 0, 0, 0, 0, 0, groups * together - a))
        ordered = full.reshape(groups, together, b, c, d).permute(0, 3, 1, 2, 4).reshape(groups, c, -1)
        ordered = F.pad(ordered, (0, width - ordered.shape[2]))
    elif d >= width:
        lanes, tiles = -(-d // width), -(-b // vectors)
        full = F.pad(w, (0, lanes * width - d, 0, 0, 0, tiles * vectors - b))
        ordered = full.reshape(a, tiles, vectors, c, lanes, width).permute(0, 4, 1, 3, 2, 5)
    else:
        each = width // d
        tiles = -(-b // (vectors * each))
        full = F.pad(w, (0, 0, 0, 0, 0, tiles * vectors * each - b))
        ordered = full.reshape(a, tiles, vectors, each, c, d).permute(0, 1, 4, 2, 3, 5).reshape(-1, each * d)
        ordered = F.pad(ordered, (0, width - each * d))
    return ordered.reshape(-1).contiguous()


def pack(isa: str, spec: Spec, params: Params) -> Packed:
    """Pack a layer's factors for the instruction set."""
    return packed_chain(isa, factors_of(spec, params), params.get("bias"), out_features_of(spec, params))


def _bits(x: Tensor) -> Tensor:
    """bfloat16 viewed as int16, which the module takes; float32 unchanged."""
    return x.view(torch.int16) if x.dtype == torch.bfloat16 else x


def run(isa: str, spec: Spec, packed: Packed, x: Tensor) -> Tensor:
    """x [..., in] -> y [..., out], float32 or bfloat16."""
    return run_packed(packed, x)


def run_packed(packed: Packed, x: Tensor, last: bool = False) -> Tensor:
    """x [..., in] -> y [..., out], or with `last` [in, batch] -> [out, batch]."""
    if x.dtype not in COMPILED_DTYPES or x.device.type != "cpu":  # the module gets addresses and cannot check them
        raise TypeError(f"the compiled kernel takes float32 and bfloat16 on the CPU, not {x.dtype} on {x.device}")
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    if not rows.is_contiguous() and (rows.stride(1) != 1 or (rows.shape[0] > 1 and rows.stride(0) < rows.shape[1])):
        rows = rows.contiguous()
    height, width = rows.shape
    y = torch.empty((packed.out_features, width) if last else (height, packed.out_features), dtype=x.dtype)
    if height and width:  # empty tensors may have any strides
        packed.chain.run(
            rows.data_ptr(), y.data_ptr(), x.dtype == torch.bfloat16, *((width, height) if last else (height, width)),
            packed.out_features, max(rows.stride(0), width), y.shape[1], torch.get_num_threads(),
        )  # fmt: skip
    return y if x.dim() == 2 else y.reshape(*x.shape[:-1], packed.out_features)
