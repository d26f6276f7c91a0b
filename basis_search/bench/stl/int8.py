"""Strassen-Tile with its r products in int8: s_l = scale_l codes(z_l) codes(w_l), z_l = (E X)_l in float32.

Per product: one scale for z_l, computed at the call, and one scale per column of w_l, computed once. Encode and decode
stay in float32, in the compiled kernels. `added`: relative squared error against the same tiles in float32; `error`:
against the dense layer, on a random weight.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from basis_search.errors import BadInput
from basis_search.evaluation.timing import measure
from basis_search.families import int8, stl
from basis_search.families.protocol import choose, relative_gap
from basis_search.families.stl import kernels_cpu
from basis_search.families.stl.bases import bases
from basis_search.families.stl.fit import encode_weight
from basis_search.layers.layer import Layer, LayerShape

Rows = list[dict[str, Any]]

SIZES = (1024, 2048)
SPECS = (
    stl.Spec(4, 24),
    stl.Spec(4, 24, "ternary"),
    stl.Spec(4, 40, "ternary"),
    stl.Spec(4, 49, "winograd2"),
)
MOST = 127
ISAS = ("avx512", "avx2")


def codes_of(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Encoded weights [r, K, M] as int8, and their scales [r, M]."""
    scales = weight.abs().amax(dim=1).clamp_min(1e-30) / MOST
    return (weight / scales[:, None]).round().clamp(-MOST, MOST).to(torch.int8), scales


def product(z: Tensor, weight: Tensor, scale: Tensor, into: Tensor) -> None:
    """into [rows, M] = z [rows, K] float32 times a coded weight, by one int8 matmul."""
    low, high = torch.aminmax(z)
    step = max(float(high), -float(low), 1e-30) / MOST
    codes = torch.mul(z, 1 / step).round_().to(torch.int8)
    torch.mul(torch._int_mm(codes, weight), scale * step, out=into)


def run(spec: stl.Spec, operator: Any, packed: tuple[Tensor, Tensor], m: int, x: Tensor) -> Tensor:
    """x [n, in] -> y [n, out]."""
    t, threads = spec.sides[0], torch.get_num_threads()
    n, K = -(-len(x) // t), -(-x.shape[1] // t)
    M = packed[0].shape[2]
    size = n * M + kernels_cpu.PAD
    z = torch.empty(spec.rank, n, K)
    s = torch.empty(spec.rank * size).as_strided((spec.rank, n, M), (size, M, 1))
    operator.encode(x, z, 0, threads)
    for place, (weight, scale) in enumerate(zip(*packed, strict=True)):
        product(z[place], weight, scale, s[place])
    y = torch.empty(len(x), m)
    operator.decode(s, y, 0, threads)
    return y


def by_int8(device: str, threads: int) -> Rows:
    """Time and error against int8 dense and against the same tiles in float32.

    Raises:
        BadInput: no compiled kernel runs here.
    """
    rows: Rows = []
    for size in SIZES:
        draw = torch.Generator().manual_seed(size)
        x, dense = torch.randn(size, size, generator=draw), torch.randn(size, size, generator=draw) / size**0.5
        shape, exact = LayerShape(size, size, size), x.double() @ dense.double().T
        layer = Layer("int8", dense, None, x[:64], x[:64], size)
        plain = choose(int8.KERNELS, int8.Spec(), shape)
        runs: dict[str, Callable[[], Tensor]] = {
            "int8 dense": partial(plain.run, int8.Spec(), plain.pack(int8.Spec(), int8.fit(int8.Spec(), layer)), x),
            "float32 dense": partial(F.linear, x, dense),
        }
        found: dict[str, dict[str, Any]] = {
            "float32 dense": {},
            "int8 dense": {"error": _off(runs["int8 dense"](), exact)},
        }
        for spec in SPECS:
            basis = bases(spec)
            weight = encode_weight(basis.encode_weight, dense.double(), spec.sides).float()
            params = {"weight": weight, "encode": basis.encode.float(), "decode": basis.decode.float()}
            params["out_features"] = torch.tensor(size)
            isa = next((i for i in ISAS if kernels_cpu.refuses(i, spec, shape) is None), None)
            if isa is None:
                raise BadInput("part=int8 needs the compiled CPU kernels, and none of avx512 and avx2 runs here")
            operator, codes = kernels_cpu.pack(isa, spec, params).operator, codes_of(weight)
            name = f"{spec.basis} rank {spec.rank}"
            whole = choose(stl.KERNELS, spec, shape)
            runs[f"{name}, float32"] = partial(whole.run, spec, whole.pack(spec, params), x)
            runs[f"{name}, int8"] = partial(run, spec, operator, codes, size, x)
            in_float, in_codes = runs[f"{name}, float32"](), runs[f"{name}, int8"]()
            found[f"{name}, float32"] = {"error": _off(in_float, exact)}
            found[f"{name}, int8"] = {"error": _off(in_codes, exact), "added": _off(in_codes, in_float)}
        timings = measure(runs, "int8 dense", threads=threads, rounds=9)
        for name, errors in found.items():
            t = timings[name]
            row = {"case": f"n=k=m={size}, {name}", "baseline": "int8 dense", "seconds": t.seconds, "ratio": t.ratio}
            rows.append({**row, "spread": t.ratio_spread, "speedup": 1 / t.ratio, **errors})
    return rows


def _off(y: Tensor, expected: Tensor) -> float:
    """Relative squared error."""
    return relative_gap(y, expected.double()) ** 2
