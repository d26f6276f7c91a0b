"""The compiled path: codes of all rows, then sums of table entries, in one call of the module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from basis_search.families.pq.reference import encode
from basis_search.families.pq.spec import Spec
from basis_search.families.protocol import Params, compiled_refusal
from basis_search.layers.layer import LayerLike

try:
    import basis_kernels.pq._cpu as _cpu
except ImportError:
    _cpu = None


def refuses(isa: str, spec: Spec, layer: LayerLike) -> str | None:
    """None where the compiled kernel of that instruction set can run the layer."""
    supports = None if _cpu is None else lambda name: name in _cpu.instruction_sets()
    return compiled_refusal(supports, isa, layer)


def pack(spec: Spec, params: Params) -> tuple[Any, Params]:
    """The module's own copy of the tables, laid out for its loads; the bias goes into the offset."""
    assert _cpu is not None
    table = params["table"].detach().cpu().contiguous()
    out = table.shape[2]
    scale, offset = torch.ones(out), torch.zeros(out, dtype=torch.float64)
    if spec.table == "uint8":
        scale, offset = params["scale"].detach().float().cpu(), params["offset"].detach().double().cpu()
    if "bias" in params:
        offset = offset + params["bias"].detach().double().cpu()
    tables = _cpu.Tables(table, scale.contiguous(), offset.float())
    if spec.encoder == "tree":
        trees = _cpu.Trees(
            params["split_columns"].detach().to("cpu", torch.int32).contiguous(),
            params["thresholds"].detach().float().cpu().contiguous(),
        )
        return (tables, trees), params
    return (tables, None), params


def run(isa: str, spec: Spec, packed: tuple[Any, Params], x: Tensor) -> Tensor:
    """x [..., in] -> y [..., out] in x's dtype, float32 for integers."""
    assert _cpu is not None
    (tables, trees), params = packed
    rows = x.detach().reshape(-1, x.shape[-1])
    y = torch.empty(len(rows), tables.out_features, dtype=x.dtype if x.is_floating_point() else torch.float32)
    threads, averaged = torch.get_num_threads(), spec.group > 1
    if trees is not None:
        _cpu.linear(trees, tables, rows, y, isa, threads, averaged)
    else:
        _cpu.scan(tables, encode(spec, params, rows).to(torch.uint8), y, isa, threads, averaged)
    return y.view(*x.shape[:-1], y.shape[1])
